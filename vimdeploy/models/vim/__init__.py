"""Vision Mamba: classifiers and dense backbones."""
