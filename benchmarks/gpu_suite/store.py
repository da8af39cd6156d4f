"""Results on disk: one JSON file per part, written after every case. A killed run loses only what was running."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

FORMAT = 1
PACKAGES = ("torch", "triton", "timm", "transformers", "onnx", "numpy", "mamba-ssm", "causal-conv1d")
NOT_MEASURED = "not measured"
EMULATED_DEVICE = "host emulation (no GPU)"


def write_json(path: Path, data: Any) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(data, indent=1) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the file's object; None where there is none or it is not one of ours."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) and data.get("format") == FORMAT else None


@dataclass
class Store:
    """The results of one part. ``cases`` maps a case's name to what was found, in the order in which it was run."""

    path: Path
    identity: dict[str, Any]
    """What results must share to be continued: device, sources, dry run or not, versions."""
    environment: dict[str, Any]
    cases: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    complete: bool = False

    @classmethod
    def open(cls, folder: Path, part: str, environment: dict[str, Any], *, fresh: bool = False) -> Store:
        """Continue the file of an earlier run of the same device and sources, else start one."""
        identity = {"part": part, **{key: environment[key] for key in ("dry_run", "device", "sources", "torch")}}
        store = cls(folder / f"{part}.json", identity, environment)
        earlier = None if fresh else read_json(store.path)
        if earlier is not None and earlier.get("identity") == identity:
            store.cases, store.notes = earlier["cases"], earlier["notes"]
        return store

    def put(self, name: str, result: Any) -> None:
        """Add a case and write the file."""
        self.cases[name] = result
        self.save()

    def save(self, *, complete: bool = False) -> None:
        """Write the file."""
        self.complete = complete
        keys = ("identity", "environment", "complete", "notes", "cases")
        write_json(self.path, {"format": FORMAT, **{key: getattr(self, key) for key in keys}})


def environment(*, dry_run: bool, sources: str) -> dict[str, Any]:
    """Describe the device, the versions and the sources; ``sources`` is their digest."""
    import torch

    facts: dict[str, Any] = {"dry_run": dry_run, "device": EMULATED_DEVICE, "sources": sources}
    facts["torch"] = str(torch.__version__)
    if not dry_run:
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "device": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "sm_count": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
            "driver": _ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "torch_cuda": torch.version.cuda,
        }
    facts["nvcc"] = _ask("nvcc", "--version").partition("release ")[2].partition(",")[0]
    facts["python"] = platform.python_version()
    facts["packages"] = {name: version for name in PACKAGES if (version := _version(name))}
    facts["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return facts


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
