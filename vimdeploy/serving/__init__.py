"""Exported models behind a server: Triton, or a small one in Python. Needs neither torch nor the checkpoint."""
