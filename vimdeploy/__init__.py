"""From a Vision Mamba checkpoint to a fast, verified TensorRT engine."""

__version__ = "0.1.0"
