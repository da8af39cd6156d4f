"""DeiT, the baseline to measure against."""
