"""The native ops of ONNX Runtime, for those who open its sessions themselves."""

from __future__ import annotations


def ops_library() -> str:
    """Return the path of the native ops, for ``SessionOptions.register_custom_ops_library`` of ONNX Runtime.

    Raises:
        MissingDependencyError: it is not here and cannot be built; says why.

    """
    from vimdeploy.runtime.ort import native_ops

    return str(native_ops("native"))
