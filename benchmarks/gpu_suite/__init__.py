"""What can only be known on a GPU, in one command: ``python -m benchmarks.gpu_suite`` (see README.md beside this)."""
