"""ONNX file -> plan and manifest: convert, prove, build, inspect, verify, write."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimdeploy import contract
from vimdeploy.artifacts.engine_manifest import EngineManifest, PluginInfo, TargetInfo, TensorRtInfo
from vimdeploy.artifacts.files import check_writable, sha256_bytes, sha256_file, write_all
from vimdeploy.artifacts.manifest import Manifest, TensorInfo, manifest_path
from vimdeploy.artifacts.onnx_file import read_onnx
from vimdeploy.artifacts.recipe import BatchProfile
from vimdeploy.artifacts.tensors import Profile
from vimdeploy.backends.base import joined, run_batched
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.backends.session import SessionBackend
from vimdeploy.commands.arguments import default_output, several
from vimdeploy.commands.engine_source import Request, Source, held_precision, in_precision, read_source
from vimdeploy.commands.samples import sample_inputs
from vimdeploy.errors import MissingDependencyError, UsageError, VerificationError
from vimdeploy.parity.metrics import compare
from vimdeploy.progress import SILENT, Reporter
from vimdeploy.runtime.cuda import CudaDevice
from vimdeploy.runtime.plan_session import PlanSession
from vimdeploy.tensorrt import api as trt
from vimdeploy.tensorrt import builder as engine_build
from vimdeploy.tensorrt import plugin as plugins
from vimdeploy.tensorrt import proof, timing
from vimdeploy.tensorrt.boundary import Layer, Messages
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
class _Host:
    """What builds: this TensorRT, told these options, on this GPU, with the plugin library where the model needs it."""

    owner: trt.TensorRt
    options: BuildOptions
    device: _Device | None
    library: plugins.PluginLibrary | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """Compute capabilities that the plan is for."""
        return self.options.compute_capabilities or ((self.device.compute_capability,) if self.device else ())

    @property
    def runs_plan(self) -> bool:
        """Whether the plan can be loaded here."""
        return self.device is not None and self.device.compute_capability in self.targets


def build_engine(
    model: str | Path,
    output: str | Path | None = None,
    *,
    precision: str | None = None,
    io_dtype: str = "fp32",
    keep: str | Sequence[str] = (),
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
    asked = Request(options or BuildOptions(), precision, io_dtype, several(keep), max_error, folder, cache, verify)
    path = Path(model)
    target = default_output(path, ".engine") if output is None else Path(output)
    owner = trt.load(asked.options.flavour)
    check_options(asked.options, owner)
    if cache is not None and owner.flavour is trt.Flavour.RTX:
        raise UsageError("--timing-cache does not exist for --runtime rtx, which times nothing.", hint="Leave it out.")
    host = _Host(owner, asked.options, _device(owner))
    check_writable(target)
    source = read_source(path)
    engine_build.refuse_foreign(source.model, str(path))
    host = replace(host, library=_load_plugin(host, source.model, reporter))
    return _build(target, in_precision(source, asked, reporter), host, asked, reporter)


def _build(output: Path, source: Source, host: _Host, request: Request, reporter: Reporter) -> BuiltEngine:
    reporter.stage("Parsing and proving the network")
    profiles = _module_profiles(source, request.options) or engine_build.make_profiles(
        source.model, request.options, _recipe_batch(source.manifest)
    )
    parsed = engine_build.parse(
        source.model, host.owner, str(source.path), source.precision, kept_blocks=source.kept_blocks
    )
    reporter.stage(f"Building for {', '.join(host.targets)}")
    plan, notes = _timed(host, parsed, profiles, source, request, reporter)
    if source.manifest is None:
        notes.append(f"{source.path.name} has no manifest: preprocessing and classes will not travel with the plan")
    report = _inspect(host, plan.content, notes) if host.runs_plan else None
    if not host.runs_plan:
        notes.append("not run here: TensorRT needs the GPU to load a plan, so neither inspector nor parity is recorded")
    sidecar = _sidecar(host, parsed, plan, source, report)
    if host.runs_plan and request.verify:
        reporter.stage("Comparing the engine with float32 in ONNX Runtime")
        parity = _parity(plan.content, sidecar, source.path, request)
        if parity is None:
            notes.append("not compared: there is no manifest, or no float32 file to compare with")
        sidecar = sidecar.model_copy(update={"parity": parity})
    # The manifest first: it names the plan by its hash, so an interruption between the two is noticed.
    write_all({manifest_path(output): sidecar.to_bytes(), output: plan.content})
    return BuiltEngine(output, manifest_path(output), sidecar, tuple(parsed.layers), report, plan.seconds, tuple(notes))


def _timed(
    host: _Host,
    parsed: engine_build.Parsed,
    profiles: tuple[Profile, ...],
    source: Source,
    request: Request,
    reporter: Reporter,
) -> tuple[engine_build.Plan, list[str]]:
    """Build the plan with the timings that earlier builds left, and leave its own; returns it with notes."""
    cache = None
    if request.timing_cache is not None and host.device is not None:
        device, version = host.device, host.owner.version
        cache = timing.cache_file(request.timing_cache, version, device.name, device.compute_capability)
    timings = timing.read(cache) if cache else None
    plan = engine_build.build(
        parsed,
        request.options,
        profiles,
        str(source.path),
        plugin=host.library.path if host.library else None,
        timing_cache=timings,
        tracker=Tracker(reporter),
    )
    if cache is None or timings is None or plan.timing_cache is None:
        return plan, []
    return plan, timing.store(cache, timings, plan.timing_cache)


def _sidecar(
    host: _Host, parsed: engine_build.Parsed, plan: engine_build.Plan, source: Source, report: dict[str, Any] | None
) -> EngineManifest:
    owner, options = host.owner, host.options
    return EngineManifest(
        tools={"vimdeploy": __version__},
        plan_sha256=sha256_bytes(plan.content),
        plan_bytes=len(plan.content),
        tensorrt=TensorRtInfo(
            flavour="rtx" if owner.flavour is trt.Flavour.RTX else "tensorrt",
            version=owner.version,
            version_compatible=options.version_compatible,
        ),
        target=_target(host),
        plugin=_plugin_info(host),
        precision=source.precision,
        tf32=options.tf32,
        kept_float32=source.kept,
        profiles=plan.profiles,
        inputs=_tensors(parsed, is_input=True),
        outputs=_tensors(parsed, is_input=False),
        onnx_file=source.path.name,
        onnx_sha256=sha256_file(source.path),
        network=parsed.summary.as_dict(),
        inspector=proof.summarise_engine(report).as_dict() if report else None,
        parity=None,
        source=source.manifest,
    )


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


def _module_profiles(source: Source, options: BuildOptions) -> tuple[Profile, ...]:
    """Return the profile that a module's manifest suggests where more than its batch is free."""
    module = source.manifest.module if source.manifest else None
    if module is None or options.profiles or any(options.batch):
        return ()
    free = any(None in shape[1:] for shape in engine_build.input_shapes(source.model).values())
    return (module.profile,) if free and module.profile else ()


def _recipe_batch(manifest: Manifest | None) -> tuple[int, int, int]:
    batch = manifest.batch if manifest else BatchProfile()
    return batch.min, batch.opt, batch.max


def _load_plugin(host: _Host, model: onnx.ModelProto, reporter: Reporter) -> plugins.PluginLibrary | None:
    options, device = host.options, host.device
    if not host.owner.takes_plugins:
        return None
    if not any(node.domain == contract.DOMAIN for node in model.graph.node):
        if options.plugin is not None or options.embed_plugin:
            name = "--embed-plugin" if options.embed_plugin else "--plugin"
            raise UsageError(f"{name} would not be used: the model has no custom op.", hint="Leave it out.")
        return None
    capability = divmod(int(device.compute_capability[3:]), 10) if device else None
    driver = device.driver if device else None
    library = plugins.load_library(host.owner.api, options.plugin, compute_capability=capability, driver=driver)
    reporter.note(f"Plugin library: {library.describe()}")
    return library


def _target(host: _Host) -> TargetInfo:
    built_on = host.device if not host.options.compute_capabilities else None
    return TargetInfo(
        compute_capabilities=host.targets,
        hardware_compatible=host.options.hardware_compatible,
        device=built_on.name if built_on else None,
        driver=built_on.driver if built_on else None,
    )


def _plugin_info(host: _Host) -> PluginInfo | None:
    if host.library is None:
        return None
    return PluginInfo(
        version=host.library.info.version,
        sha256=sha256_file(host.library.path),
        file=host.library.path.name,
        embedded=host.options.embed_plugin,
    )


def _tensors(parsed: engine_build.Parsed, *, is_input: bool) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(name=t.name, dtype=t.dtype, shape=tuple("batch" if d < 0 else d for d in t.shape))
        for t in parsed.network.tensors()
        if t.is_input == is_input
    )


def _inspect(host: _Host, plan: bytes, notes: list[str]) -> dict[str, Any] | None:
    """Read the built engine, where this GPU can load it."""
    messages = Messages()
    report = None
    with suppress(ValueError):
        engine = host.owner.runtime(messages, host_code=host.options.version_compatible).engine(plan)
        report = engine.inspect() if engine else None
    if report is None:
        notes.append("the engine could not be inspected on this GPU: " + ("; ".join(messages.errors()) or "no report"))
    return report


def _parity(plan: bytes, sidecar: EngineManifest, model_path: Path, request: Request) -> dict[str, Any] | None:
    """Run the engine and hold it to the recipe's contract, before it is written where anybody would find it.

    Raises:
        VerificationError: the engine does not compute what the float32 model computes.

    """
    manifest, model = sidecar.source, read_onnx(model_path)
    if manifest is None or held_precision(model):
        return None
    with tempfile.TemporaryDirectory(prefix="vimdeploy-") as folder:
        path = Path(folder) / "check.engine"
        write_all({manifest_path(path): sidecar.to_bytes(), path: plan})
        batch = next((p["images"][2][0] for p in sidecar.profiles if "images" in p), 1)
        images = sample_inputs(manifest, model_path, request.images, min(batch, 8))
        if request.images is None:
            images = images[: min(batch, 8)]
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
