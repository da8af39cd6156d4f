"""The custom ops of the toolkit as torch ops, each beside a loop that a reader can check by eye.

Importing this package registers ``torch.ops.vimdeploy.causal_conv1d`` and ``torch.ops.vimdeploy.selective_scan``.
"""

from vimdeploy.ops.conv import causal_conv1d, causal_conv1d_reference
from vimdeploy.ops.scan import selective_scan, selective_scan_reference

__all__ = ["causal_conv1d", "causal_conv1d_reference", "selective_scan", "selective_scan_reference"]
