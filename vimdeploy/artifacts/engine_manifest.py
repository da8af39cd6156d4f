"""The manifest beside a plan, and whether that plan may be loaded here: decided in words, before TensorRT sees it.

TensorRT's own answers ("Version tag does not match") name neither the file nor the remedy. The manifest never goes into
the plan: trtexec and Triton would refuse it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vimdeploy.artifacts.files import sha256_file, sidecar_of
from vimdeploy.artifacts.manifest import Count, Manifest, TensorInfo, manifest_path
from vimdeploy.artifacts.structured import read_json
from vimdeploy.artifacts.tensors import Profile
from vimdeploy.errors import ArtifactError

SCHEMA_VERSION = 1


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorRtInfo(_Section):
    """Which TensorRT made the plan."""

    flavour: Literal["tensorrt", "rtx"]
    version: str
    version_compatible: bool


class TargetInfo(_Section):
    """Which GPUs the plan is for."""

    compute_capabilities: tuple[str, ...]
    hardware_compatible: bool
    """Any GPU from Ampere on."""
    device: str | None
    """Name of the GPU it was built on; None if built ahead of time."""
    driver: int | None
    """Newest CUDA version of the driver it was built with, as CUDA numbers it (13000)."""


class PluginInfo(_Section):
    """The plugin library the plan needs."""

    version: str
    sha256: str
    file: str
    embedded: bool


class EngineManifest(_Section):
    """Everything that decides whether a plan may be loaded here, and what it is."""

    schema_version: Literal[1] = 1
    kind: Literal["engine"] = "engine"
    tools: dict[str, str]
    plan_sha256: str
    plan_bytes: Count
    tensorrt: TensorRtInfo
    target: TargetInfo
    plugin: PluginInfo | None
    precision: str
    tf32: bool = True
    """Whether float32 products may round their inputs to 10 bits; plans from before this was recorded may."""
    kept_float32: tuple[str, ...]
    """Nodes that the precision policy left in float32 because their values do not fit."""
    profiles: tuple[Profile, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    onnx_file: str
    onnx_sha256: str
    network: dict[str, Any]
    """Figures of the parsed network; see :class:`vimdeploy.tensorrt.proof.NetworkSummary`."""
    inspector: dict[str, Any] | None
    """Figures of the built engine; None where no GPU was there to read it."""
    parity: dict[str, Any] | None
    """Verification of the engine; None where it was left out or no GPU was there to run it."""
    source: Manifest | None
    """Manifest of the ONNX file: preprocessing, classes, checkpoint; None if it had none."""

    def to_bytes(self) -> bytes:
        """Return the JSON text of the sidecar."""
        return (self.model_dump_json(indent=2) + "\n").encode()


@dataclass(frozen=True)
class Machine:
    """What decides whether a plan runs here. ``versions`` is by flavour; ``plugin_sha256`` of the library at hand."""

    versions: dict[str, str]
    compute_capability: str | None
    driver: int | None
    plugin_version: str | None = None
    plugin_sha256: str | None = None

    @property
    def capability_numbers(self) -> tuple[int, int] | None:
        """``(8, 9)`` for ``sm_89``."""
        return divmod(int(self.compute_capability[3:]), 10) if self.compute_capability else None


def read_engine_manifest(plan: Path) -> EngineManifest:
    """Read the manifest beside a plan.

    Raises:
        ArtifactError: it is missing, unreadable, of a newer schema, or not of an engine.

    """
    path = sidecar_of(plan, manifest_path(plan))
    again = "Build the engine again with 'vimdeploy build-engine'."
    try:
        data = read_json(path, hint=again)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path}: the manifest of {plan.name} is missing", hint=f"Copy it along with the plan. {again}"
        ) from error
    if not isinstance(data, dict) or data.get("kind") != "engine":
        raise ArtifactError(f"{path}: is not the manifest of an engine", hint=again)
    version = data.get("schema_version", 0)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: has engine schema {data['schema_version']}; this vimdeploy reads up to {SCHEMA_VERSION}",
            hint="Upgrade vimdeploy: pip install --upgrade vimdeploy",
        )
    try:
        return EngineManifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtifactError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}", hint=again) from error


def refuse_unloadable(
    plan: Path,
    manifest: EngineManifest,
    machine: Machine,
    *,
    allow_modified: bool = False,
    allow_host_code: bool = False,
) -> None:
    """Raise ArtifactError, with every reason in words, unless this machine can load the plan and the user lets it.

    Args:
        plan: the plan.
        manifest: as it lies beside it.
        machine: what is here.
        allow_modified: take a plan that the manifest does not describe.
        allow_host_code: take a plan that brings code for this machine's processor, which loading it would run.

    """
    if not plan.exists():
        raise ArtifactError(f"{plan}: there is no such file", hint="Check the path of the plan.")
    changed = plan.stat().st_size != manifest.plan_bytes or sha256_file(plan) != manifest.plan_sha256
    if changed and not allow_modified:
        raise ArtifactError(
            f"{plan}: is not the plan that its manifest describes (SHA-256 differs)",
            hint="Copy plan and manifest together, or build the engine again.",
        )
    reasons = [*_version(manifest.tensorrt, machine), *_gpu(manifest, machine), *_plugin(manifest.plugin, machine)]
    if reasons:
        raise ArtifactError(
            f"{plan}: cannot be loaded here: {'; '.join(reasons)}",
            hint="Build the engine again on this machine with 'vimdeploy build-engine', or run the ONNX file.",
        )
    if (code := _host_code(manifest)) and not allow_host_code:
        raise ArtifactError(
            f"{plan}: brings code that loading it would run on this machine: {code}",
            hint="If you trust whoever built it, in Python: vimdeploy.load(plan, allow_host_code=True).",
        )


def _host_code(manifest: EngineManifest) -> str:
    found = ["a lean runtime (it is version compatible)"] * manifest.tensorrt.version_compatible
    found += ["a plugin library"] * bool(manifest.plugin and manifest.plugin.embedded)
    return " and ".join(found)


def _version(made: TensorRtInfo, machine: Machine) -> list[str]:
    name = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}[made.flavour]
    here = machine.versions.get(made.flavour)
    if here is None:
        return [f"it needs {name} {made.version}, which is not installed"]
    if here == made.version:
        return []
    if not made.version_compatible:
        return [f"it was built by {name} {made.version}, here is {here}"]
    if _release(here) < _release(made.version):
        return [f"it was built by {name} {made.version} and is compatible with later versions only, here is {here}"]
    if _release(here)[0] not in _COMPATIBLE_MAJORS.get(_release(made.version)[0], ()):
        return [f"it was built by {name} {made.version}, whose compatible plans {name} {here} does not take"]
    return []


_COMPATIBLE_MAJORS = {8: (8, 10), 10: (10, 11), 11: (11,)}
"""Which majors take a version-compatible plan of a major: their own and the next one, so far as NVIDIA has said it."""


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _gpu(manifest: EngineManifest, machine: Machine) -> list[str]:
    target, here = manifest.target, machine.compute_capability
    if here is None:
        return ["no NVIDIA GPU can be used here"]
    if target.hardware_compatible:
        return [] if int(here[3:]) >= 80 else [f"it is for GPUs from Ampere (sm_80) on, here is {here}"]
    if here not in target.compute_capabilities:
        return [f"it is for {' and '.join(target.compute_capabilities)}, the GPU here is {here}"]
    return []


def _plugin(plugin: PluginInfo | None, machine: Machine) -> list[str]:
    if plugin is None or plugin.embedded:
        return []
    if machine.plugin_sha256 is None:
        return [f"it needs the plugin library {plugin.file} (version {plugin.version}), which is not found here"]
    if machine.plugin_version != plugin.version:
        return [f"it needs version {plugin.version} of the plugin library, here is {machine.plugin_version}"]
    return []
