"""Build hook of the wheel: where a C++ compiler is, the wheel carries the native ops and a platform tag."""

from __future__ import annotations

import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeOpsHook(BuildHookInterface):
    """Compiles ``libvimdeploy_ops`` into the wheel. Without a compiler the wheel is pure Python, and says so."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library to what the wheel includes; an editable checkout builds its own when it is first used."""
        if self.target_name != "wheel" or version == "editable":
            return
        sys.path.insert(0, self.root)  # the compiler's call is the package's own; it imports nothing but itself
        try:
            from vimdeploy.native.ops_library import OPS, compile_ops, find_compiler
        finally:
            sys.path.pop(0)
        if find_compiler() is None:
            self.app.display_warning("no C++ compiler: this wheel carries no native ops, only their sources")
            return
        self._folder = tempfile.TemporaryDirectory()
        library = Path(self._folder.name) / OPS
        compile_ops(Path(self.root) / "plugins", library)
        build_data["force_include"][str(library)] = f"vimdeploy/_lib/{OPS}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled: the wheel holds it now."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()
