"""Everything that talks to TensorRT; ``api`` alone imports it."""
