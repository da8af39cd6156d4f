"""Torch modules whose state-dict keys are the official ones."""
