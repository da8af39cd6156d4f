"""The custom ops of the toolkit as torch ops, each beside a loop that a reader can check by eye.

Importing this package registers ``torch.ops.vimdeploy.causal_conv1d``, ``selective_scan`` and ``selective_scan_delta``.
"""

from vimdeploy.ops.conv import causal_conv1d, causal_conv1d_reference
from vimdeploy.ops.scan import selective_scan, selective_scan_reference
from vimdeploy.ops.scan_delta import selective_scan_delta, selective_scan_delta_reference

__all__ = [
    "causal_conv1d",
    "causal_conv1d_reference",
    "selective_scan",
    "selective_scan_delta",
    "selective_scan_delta_reference",
    "selective_scan_reference",
]
