"""ONNX file -> plan and manifest: convert, prove, build, inspect, verify, write."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimdeploy.artifacts.engine_manifest import EngineManifest, PluginInfo, TargetInfo, TensorRtInfo
from vimdeploy.artifacts.files import check_writable, sha256_bytes, sha256_file, sidecar_of, write_all
from vimdeploy.artifacts.images import sample_images
from vimdeploy.artifacts.manifest import Manifest, TensorInfo, is_stale, manifest_path, read_manifest
from vimdeploy.artifacts.onnx_file import read_onnx
from vimdeploy.artifacts.recipe import BatchProfile
from vimdeploy.artifacts.tensors import Profile
from vimdeploy.backends.base import joined, run_batched
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.backends.session import SessionBackend
from vimdeploy.commands.convert import HalfOptions, to_half
from vimdeploy.errors import ArtifactError, MissingDependencyError, UsageError, VerificationError
from vimdeploy.graph.policy import PRECISIONS
from vimdeploy.parity.metrics import compare
from vimdeploy.progress import SILENT, Reporter
from vimdeploy.runtime.cuda import CudaDevice
from vimdeploy.runtime.plan_session import PlanSession
from vimdeploy.tensorrt import api as trt
from vimdeploy.tensorrt import builder as engine_build
from vimdeploy.tensorrt import plugin as plugins
from vimdeploy.tensorrt import proof, timing
from vimdeploy.tensorrt.boundary import Layer, Messages, TimingCacheHandle
from vimdeploy.tensorrt.options import BuildOptions, check_options
from vimdeploy.tensorrt.progress import Tracker
from vimdeploy.version import __version__

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class BuiltEngine:
    """A plan on disk."""

    path: Path
    manifest_path: Path
    manifest: EngineManifest
    layers: tuple[Layer, ...]
    inspector: dict[str, Any] | None
    """The engine inspector's own report; None where no GPU was there to read it."""
    seconds: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        paths = {"path": str(self.path), "manifest_path": str(self.manifest_path), "notes": list(self.notes)}
        return {**paths, **self.manifest.model_dump(mode="json")}


@dataclass(frozen=True)
class _Device:
    name: str
    compute_capability: str
    driver: int


@dataclass(frozen=True)
class _Request:
    """What :func:`build_engine` was asked for beside the model."""

    options: BuildOptions = field(default_factory=BuildOptions)
    precision: str | None = None
    io_dtype: str = "fp32"
    keep: tuple[str, ...] = ()
    max_error: float | None = None
    images: Path | None = None
    timing_cache: Path | None = None
    verify: bool = True

    @property
    def for_half(self) -> dict[str, bool]:
        """Whether each option that only a conversion to half precision reads was given."""
        return {
            "--keep": bool(self.keep),
            "--max-error": self.max_error is not None,
            "--io-dtype": self.io_dtype != "fp32",
        }


def build_engine(
    model: str | Path,
    output: str | Path | None = None,
    *,
    precision: str | None = None,
    io_dtype: str = "fp32",
    keep: Sequence[str] = (),
    max_error: float | None = None,
    images: str | Path | None = None,
    timing_cache: str | Path | None = None,
    verify: bool = True,
    options: BuildOptions | None = None,
    reporter: Reporter = SILENT,
) -> BuiltEngine:
    """Build a TensorRT engine from an ONNX file; plan and manifest appear together or not at all.

    Args:
        model: ONNX file that `vimdeploy export` or `convert` wrote.
        output: Plan to write; default: MODEL.engine.
        precision: fp32, fp16 or bf16 where the policy says so; default: what the file holds, else the recipe's.
        io_dtype: Type of inputs and outputs: fp32 or the model's own half (fp16, bf16).
        keep: Keep nodes of this name in float32; a pattern as *scan*; may be repeated.
        max_error: Relative RMS error that half precision may cost; blocks that cost more stay float32. Default: the
            recipe's contract.
        images: Folder of images to measure on, as the model will see; default: synthetic images.
        timing_cache: Folder that keeps kernel timings between builds.
        verify: Hold it to the recipe's contract.
        options: What TensorRT is told; None takes the defaults.
        reporter: Told what the build is at.

    Raises:
        MissingDependencyError: TensorRT, a GPU or the plugin library is missing; said before any work.
        UsageError: options that do not fit each other, the model or this TensorRT.
        ArtifactError: the model cannot be built, or would not be what was asked for.
        VerificationError: a converted model or the engine does not keep the recipe's contract.
        KeyboardInterrupt: after TensorRT has stopped.

    """
    folder, cache = (None if path is None else Path(path) for path in (images, timing_cache))
    asked = _Request(options or BuildOptions(), precision, io_dtype, tuple(keep), max_error, folder, cache, verify)
    path = Path(model)
    return _build(path, path.with_suffix(".engine") if output is None else Path(output), asked, reporter)


def _build(model_path: Path, output: Path, request: _Request, reporter: Reporter) -> BuiltEngine:
    owner = trt.load(request.options.flavour)
    check_options(request.options, owner)
    device = _device(owner)
    check_writable(output)
    notes: list[str] = []
    model = read_onnx(model_path)
    manifest = _manifest(model_path, notes)
    engine_build.refuse_foreign(model, str(model_path))
    library = _load_plugin(owner, request.options, device, model, reporter)
    precision, held = _choose_precision(model, manifest, request, str(model_path))
    manifest = manifest.bounded(precision=precision, max_error=request.max_error) if manifest else None
    model, kept, blocks = _in_precision(model, manifest, request, precision, held, str(model_path), reporter)
    profiles = engine_build.make_profiles(model, request.options, _recipe_batch(manifest))
    reporter.stage("Parsing and proving the network")
    parsed = engine_build.parse(model, owner, str(model_path), precision, kept_blocks=blocks)
    cache_file = _cache_file(request, owner, device)
    timings = timing.read(cache_file) if cache_file else None
    reporter.stage(f"Building for {', '.join(_targets(request.options, device))}")
    plan = engine_build.build(
        parsed,
        request.options,
        profiles,
        str(model_path),
        plugin=library.path if library else None,
        timing_cache=timings,
        tracker=Tracker(reporter),
    )
    if cache_file and timings is not None and plan.timing_cache is not None:
        notes += store_timings(cache_file, timings, plan.timing_cache)
    runs_here = device is not None and device.compute_capability in _targets(request.options, device)
    report = _inspect(owner, plan.content, request.options, notes) if runs_here else None
    if not runs_here:
        notes.append("not run here: TensorRT needs the GPU to load a plan, so neither inspector nor parity is recorded")
    sidecar = EngineManifest(
        tools={"vimdeploy": __version__},
        plan_sha256=sha256_bytes(plan.content),
        plan_bytes=len(plan.content),
        tensorrt=TensorRtInfo(
            flavour="rtx" if owner.flavour is trt.Flavour.RTX else "tensorrt",
            version=owner.version,
            version_compatible=request.options.version_compatible,
        ),
        target=_target(request.options, device),
        plugin=_plugin_info(library, request.options),
        precision=precision,
        tf32=request.options.tf32,
        kept_float32=tuple(kept),
        profiles=plan.profiles,
        inputs=_tensors(parsed, is_input=True),
        outputs=_tensors(parsed, is_input=False),
        onnx_file=model_path.name,
        onnx_sha256=sha256_file(model_path),
        network=parsed.summary.as_dict(),
        inspector=proof.summarise_engine(report).as_dict() if report else None,
        parity=None,
        source=manifest,
    )
    if runs_here and request.verify:
        reporter.stage("Comparing the engine with float32 in ONNX Runtime")
        sidecar = sidecar.model_copy(update={"parity": _parity(plan.content, sidecar, read_onnx(model_path), request)})
    # The manifest first: it names the plan by its hash, so an interruption between the two is noticed.
    write_all({manifest_path(output): sidecar.to_bytes(), output: plan.content})
    return BuiltEngine(output, manifest_path(output), sidecar, tuple(parsed.layers), report, plan.seconds, tuple(notes))


def _device(owner: trt.TensorRt) -> _Device | None:
    """Find the GPU. TensorRT builds on it; TensorRT-RTX builds ahead of time and does without."""
    try:
        return _Device(*CudaDevice().facts())
    except MissingDependencyError as error:
        if owner.flavour is trt.Flavour.RTX:
            return None
        raise MissingDependencyError(
            f"TensorRT builds on the GPU it builds for, and {error.message}",
            hint="Build ahead of time with '--runtime rtx --compute-capability sm_89', or run the ONNX file as it is.",
        ) from error


def _manifest(model_path: Path, notes: list[str]) -> Manifest | None:
    if not sidecar_of(model_path, manifest_path(model_path)).exists():
        notes.append(f"{model_path.name} has no manifest: preprocessing and classes will not travel with the plan")
        return None
    manifest = read_manifest(model_path)
    if is_stale(manifest, model_path):
        raise ArtifactError(
            f"{model_path}: is not the file that its manifest describes (SHA-256 differs).",
            hint="Export the model again, or delete the manifest to build without it.",
        )
    return manifest


def _recipe_batch(manifest: Manifest | None) -> tuple[int, int, int]:
    batch = manifest.batch if manifest else BatchProfile()
    return batch.min, batch.opt, batch.max


def _load_plugin(
    owner: trt.TensorRt, options: BuildOptions, device: _Device | None, model: onnx.ModelProto, reporter: Reporter
) -> plugins.PluginLibrary | None:
    if not owner.takes_plugins or not any(node.domain == "vimdeploy" for node in model.graph.node):
        return None
    number = int(device.compute_capability[3:]) if device else 0
    capability = divmod(number, 10) if device else None
    driver = device.driver if device else None
    library = plugins.load_library(owner.api, options.plugin, compute_capability=capability, driver=driver)
    reporter.note(f"Plugin library: {library.describe()}")
    return library


def _choose_precision(
    model: onnx.ModelProto, manifest: Manifest | None, request: _Request, source: str
) -> tuple[str, bool]:
    """Return the precision to build, and whether the model's weights are in it already.

    Raises:
        UsageError: the file is in another half precision, or an option only serves a conversion that does not happen.

    """
    held = _held_precision(model)
    wanted = request.precision or held or (manifest.precision.engine if manifest else "fp32")
    if held is not None and wanted != held:
        raise UsageError(
            f"{source}: is in {held} already, so it cannot be built as {wanted}.",
            hint=f"Leave --{wanted} out, or build the float32 file that 'vimdeploy export' wrote.",
        )
    if held is not None or wanted == "fp32":
        why = f"{source} is in {held} already" if held else "the engine is built in float32"
        for option in (name for name, given in request.for_half.items() if given):
            if option == "--max-error" and held:
                continue  # the engine itself is held to it
            raise UsageError(
                f"{option} is for converting to half precision, and {why}.",
                hint="Leave it out, or give it to 'vimdeploy convert'." if held else "Leave it out, or add --fp16.",
            )
    return wanted, held is not None


def _in_precision(
    model: onnx.ModelProto,
    manifest: Manifest | None,
    request: _Request,
    precision: str,
    held: bool,
    source: str,
    reporter: Reporter,
) -> tuple[onnx.ModelProto, list[str], bool]:
    """Return the model in the types to build, the nodes kept in float32, and whether whole blocks are."""
    if held:
        return model, [], bool(manifest and (manifest.conversion or {}).get("kept_blocks"))
    if precision == "fp32":
        return model, [], False
    options = HalfOptions(precision, request.io_dtype, request.keep, request.max_error, request.images, request.verify)
    half = to_half(model, manifest, options, source, reporter)
    return half.model, [f"{k.node}: {k.reason}" for k in half.report.kept], bool(half.blocks)


def _held_precision(model: onnx.ModelProto) -> str | None:
    """Return the half precision that a model's weights are in, or None where they are float32."""
    types = {tensor.data_type for tensor in model.graph.initializer}
    return next((p.name for p in PRECISIONS.values() if p.dtype.value in types), None)


def _cache_file(request: _Request, owner: trt.TensorRt, device: _Device | None) -> Path | None:
    if request.timing_cache is None or not owner.takes_plugins or device is None:
        return None
    return timing.cache_file(request.timing_cache, owner.version, device.name, device.compute_capability)


def store_timings(path: Path, read: bytes, measured: TimingCacheHandle) -> list[str]:
    """Add a build's timings to the file that other builds may have written meanwhile.

    Args:
        path: the file.
        read: what it held before the build.
        measured: TensorRT's cache after the build.

    Returns:
        Notes for the user: a file that TensorRT refused is kept beside under another name.

    """
    aside = timing.set_aside(path, read) if measured.refused else None
    timing.merge(path, measured.merged)
    if aside is None:
        return []
    return [f"TensorRT refused the timing cache {path.name}: it is now {aside.name}, and a new one is there"]


def _targets(options: BuildOptions, device: _Device | None) -> tuple[str, ...]:
    return options.compute_capabilities or ((device.compute_capability,) if device else ())


def _target(options: BuildOptions, device: _Device | None) -> TargetInfo:
    built_on = device if not options.compute_capabilities else None
    return TargetInfo(
        compute_capabilities=_targets(options, device),
        hardware_compatible=options.hardware_compatible,
        device=built_on.name if built_on else None,
        driver=built_on.driver if built_on else None,
    )


def _plugin_info(library: plugins.PluginLibrary | None, options: BuildOptions) -> PluginInfo | None:
    if library is None:
        return None
    return PluginInfo(
        version=library.info.version,
        sha256=sha256_file(library.path),
        file=library.path.name,
        embedded=options.embed_plugin,
    )


def _tensors(parsed: engine_build.Parsed, *, is_input: bool) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(name=t.name, dtype=t.dtype, shape=tuple("batch" if d < 0 else d for d in t.shape))
        for t in parsed.network.tensors()
        if t.is_input == is_input
    )


def _inspect(owner: trt.TensorRt, plan: bytes, options: BuildOptions, notes: list[str]) -> dict[str, Any] | None:
    """Read the built engine, where this GPU can load it."""
    messages = Messages()
    report = None
    with suppress(ValueError):
        engine = owner.runtime(messages, host_code=options.version_compatible).engine(plan)
        report = engine.inspect() if engine else None
    if report is None:
        notes.append("the engine could not be inspected on this GPU: " + ("; ".join(messages.errors()) or "no report"))
    return report


def _parity(plan: bytes, sidecar: EngineManifest, model: onnx.ModelProto, request: _Request) -> dict[str, Any] | None:
    """Run the engine and hold it to the recipe's contract, before it is written where anybody would find it.

    Raises:
        VerificationError: the engine does not compute what the float32 model computes.

    """
    manifest = sidecar.source
    if manifest is None or _held_precision(model):
        return None
    with tempfile.TemporaryDirectory(prefix="vimdeploy-") as folder:
        path = Path(folder) / "check.engine"
        write_all({manifest_path(path): sidecar.to_bytes(), path: plan})
        batch = next((p["images"][2][0] for p in sidecar.profiles if "images" in p), 1)
        images = sample_images(manifest.preprocessing, request.images, min(batch, 8))
        with PlanSession(path, graphs=0, plugin=request.options.plugin, allow_host_code=True) as session:
            candidate = joined(run_batched(SessionBackend(session), images))
        reference = joined(run_batched(OnnxBackend(model), images))
    metrics = compare(
        candidate, reference, manifest.contract[sidecar.precision], classes=manifest.model.task == "classify"
    )
    if not metrics.passed:
        raise VerificationError(
            f"the engine does not compute what the float32 model computes: {'; '.join(metrics.violations)}.",
            hint="Nothing was written. 'vimdeploy verify MODEL.onnx --ladder' says on which rung and at which node.",
        )
    return metrics.to_dict()


def show_profile(profile: Profile) -> str:
    """Return a profile in words: ``images 1, 8, 64 x 3 x 224 x 224``."""
    rows = []
    for name, (least, best, most) in profile.items():
        rest = " x ".join(map(str, most[1:]))
        same = least[1:] == best[1:] == most[1:]
        shapes = f"{least[0]}, {best[0]}, {most[0]} x {rest}" if same else f"{least}, {best}, {most}"
        rows.append(f"{name} {shapes}")
    return "; ".join(rows)
