"""Everything about TensorRT, nothing about torch."""
