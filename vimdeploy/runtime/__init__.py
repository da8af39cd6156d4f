"""Run plans and ONNX files: sessions, slots, arrays on host and device. Never imports torch."""
