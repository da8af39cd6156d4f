"""Everything about ONNX, nothing about TensorRT."""
