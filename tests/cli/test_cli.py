import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from commandline import refuse, snapshot, succeed, vimdeploy
from goldens import DATA, golden, write_checkpoint
from onnx import TensorProto, helper
from PIL import Image

from vimdeploy import __version__
from vimdeploy.artifacts.files import sha256_file
from vimdeploy.artifacts.manifest import read_manifest
from vimdeploy.commands.inspect import inspect_layers
from vimdeploy.runtime import plan_session

ROOT = Path(__file__).parents[2]
SMALL = "layernorm"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder with one verified export, its checkpoint and an image."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copy(DATA / "cls_tiny.pth", folder)
    result = succeed("export", folder / "cls_tiny.pth", "--json")
    (folder / "export.json").write_text(result.stdout)
    (folder / "export.txt").write_text(result.stderr)
    pixels = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder


@pytest.fixture
def copy(home, tmp_path):
    """Return a copy of the home that the test may damage."""
    for path in home.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path


def assert_clean_json(result):
    """Standard output is one JSON document: no table, no progress, no colour."""
    assert "\x1b" not in result.stdout
    return result.json()


# What the commands do


def test_export_writes_a_verified_model_and_its_manifest_beside_the_checkpoint(home):
    said = json.loads((home / "export.json").read_text())
    assert said["path"] == str(home / "cls_tiny.onnx")
    assert said["manifest_path"] == str(home / "cls_tiny.onnx.json")
    manifest = read_manifest(home / "cls_tiny.onnx")
    assert manifest.onnx.sha256 == sha256_file(home / "cls_tiny.onnx")
    assert manifest.checkpoint.sha256 == sha256_file(home / "cls_tiny.pth")
    assert (manifest.checkpoint.file, manifest.checkpoint.weights) == ("cls_tiny.pth", "model")
    assert manifest.onnx.custom_ops == {"CausalConv1d": 4, "SelectiveScan": 4}
    assert manifest.parity["passed"] is True
    assert {result["batch"] for result in manifest.parity["results"]} == {1, 3}
    assert manifest.input.shape[1:] == (3, 64, 64)
    assert isinstance(manifest.input.shape[0], str)
    assert manifest.tools["vimdeploy"] == __version__
    assert {"torch", "onnx"} <= manifest.tools.keys()


def test_export_says_on_screen_what_was_inferred_from_where(tmp_path):
    checkpoint = write_checkpoint(tmp_path, "no_divide")
    result = succeed(
        "export", checkpoint, "--no-verify", "-o", tmp_path / "out.onnx", "--model-args", '{"if_divide_out": false}'
    )
    lines = {line.split("│")[1].strip(): line for line in result.stdout.splitlines() if line.count("│") == 3}
    assert "if_divide_out=false" in result.stdout
    assert any("--model-args" in name for name in lines)
    assert "the checkpoint's shapes" in result.stdout
    assert "wrote" in result.stdout
    assert "Exporting to ONNX ..." in result.stderr
    manifest = read_manifest(tmp_path / "out.onnx")
    assert manifest.model.arguments["if_divide_out"] is False
    assert manifest.model.sources["if_divide_out"] == "--model-args"
    assert manifest.parity is None


def test_options_of_the_export_reach_the_file(tmp_path):
    checkpoint = shutil.copy(DATA / "cls_tiny.pth", tmp_path)
    out = tmp_path / "out.onnx"
    succeed("export", checkpoint, "-o", out, "--weights", "ema", "--batch", 2, "--opset", 21, "--task", "features",
            "--img-size", "48x96")  # fmt: skip
    manifest = read_manifest(out)
    assert manifest.checkpoint.weights == "ema"
    assert manifest.input.shape == (2, 3, 48, 96)
    assert manifest.onnx.opset == 21
    assert manifest.outputs[0].name == "features"
    assert manifest.model.img_size == (48, 96)
    assert manifest.batch.min == manifest.batch.max == 2
    assert any("resized" in note for note in manifest.notes)
    succeed("verify", out, "--samples", 2)


def test_exporting_again_replaces_the_file_by_the_same_bytes(copy):
    before = (copy / "cls_tiny.onnx").read_bytes()
    succeed("export", copy / "cls_tiny.pth", "--no-verify")
    assert (copy / "cls_tiny.onnx").read_bytes() == before
    assert read_manifest(copy / "cls_tiny.onnx").parity is None


def test_predict_gives_the_classes_of_the_model_best_first(home):
    result = succeed("predict", home / "cls_tiny.onnx", home / "photo.png", home / "photo.png", "--top", 3, "--json")
    (first,) = assert_clean_json(result)
    assert first["image"] == str(home / "photo.png")
    assert "named more than once" in result.stderr
    scores = [c["probability"] for c in first["classes"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3
    everything = succeed("predict", home / "cls_tiny.onnx", home / "photo.png", "--top", 99, "--json").json()
    assert sum(c["probability"] for c in everything[0]["classes"]) == pytest.approx(1, abs=1e-5)


def test_predict_shows_people_a_table(home):
    result = succeed("predict", home / "cls_tiny.onnx", home / "photo.png")
    assert "photo.png" in result.stdout
    assert "%" in result.stdout


def test_predict_names_the_classes_that_a_recipe_knows(copy):
    manifest = json.loads((copy / "cls_tiny.onnx.json").read_text())
    manifest["classes"] = {"count": 10, "names": [f"digit {i}" for i in range(10)]}
    (copy / "cls_tiny.onnx.json").write_text(json.dumps(manifest))
    (first,) = succeed("predict", copy / "cls_tiny.onnx", copy / "photo.png", "--json").json()
    assert all(c["label"] == f"digit {c['index']}" for c in first["classes"])


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("cls_tiny.pth", {"checkpoint", "architecture"}),
        ("cls_tiny.onnx", {"file", "operators", "inputs", "outputs", "weights", "manifest"}),
        ("cls_tiny.onnx.json", {"manifest"}),
    ],
)
def test_inspect_says_what_a_file_holds(home, name, sections):
    facts = assert_clean_json(succeed("inspect", home / name, "--json"))
    assert sections <= facts.keys()
    assert "wrote" not in (shown := succeed("inspect", home / name).stdout)
    assert len(shown.splitlines()) > 5


def test_inspect_counts_operators_and_parameters(home):
    facts = succeed("inspect", home / "cls_tiny.onnx", "--json").json()
    assert facts["operators"]["vimdeploy::SelectiveScan"] == 4
    assert facts["manifest"]["describes this file"] is True
    architecture = succeed("inspect", home / "cls_tiny.pth", "--json").json()["architecture"]
    assert (architecture["embed_dim"], architecture["depth"], architecture["bimamba_type"]) == (64, 4, "v2")


def test_inspect_lists_the_nodes_that_keep_takes_names_of(home):
    layers = succeed("inspect", home / "cls_tiny.onnx", "--layers", "--json").json()["layers"]
    scans = [layer for layer in layers if layer["op"] == "vimdeploy::SelectiveScan"]
    assert [(scan["type"], scan["shape"]) for scan in scans] == [("float32", "batch x 17 x 128")] * 4
    assert scans[0]["name"] in succeed("inspect", home / "cls_tiny.onnx", "--layers").stdout
    refuse("inspect", home / "cls_tiny.pth", "--layers", words=["has no layers to list"])


def test_inspect_lists_the_layers_of_a_plan_as_built(monkeypatch):
    report = {"Layers": [{"LayerType": "PluginV3", "Name": "scan_0", "TacticName": "0x1"}, "without details"]}
    monkeypatch.setattr(plan_session, "load_plan", lambda path: (None, SimpleNamespace(inspect=lambda: report), None))
    assert inspect_layers(Path("vim.engine")) == [
        {"layer": "PluginV3", "name": "scan_0", "tactic": "0x1"},
        {"layer": "", "name": "without details", "tactic": ""},
    ]


def test_inspect_notices_a_file_that_its_manifest_does_not_describe(copy):
    with (copy / "cls_tiny.onnx").open("ab") as file:
        file.write(b"")
    model = onnx.load(copy / "cls_tiny.onnx")
    model.doc_string = "touched"
    onnx.save(model, copy / "cls_tiny.onnx")
    facts = succeed("inspect", copy / "cls_tiny.onnx", "--json").json()
    assert facts["manifest"]["describes this file"] is False


def test_inspect_reads_recipes():
    facts = succeed("inspect", ROOT / "export" / "vim_tiny_patch16_224.toml", "--json").json()
    assert facts["recipe"]["parameters"] == 7_148_008


def test_recipes_lists_the_released_models():
    known = {recipe["name"]: recipe for recipe in assert_clean_json(succeed("recipes", "--json"))}
    assert known["vim_base_patch16_224"]["parameters"] == 97_598_440
    shown = succeed("recipes").stdout
    assert all(name in shown for name in known)


def test_the_version_is_printed():
    assert succeed("--version").stdout.strip() == f"vimdeploy {__version__}"


# Help


def subprocess_environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}


def test_help_takes_at_most_a_third_of_a_second_of_the_processor():
    command = [sys.executable, "-m", "vimdeploy", "--help"]
    times = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, env=subprocess_environment(), capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "export" in done.stdout
    assert min(times) <= 0.3, times


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom unittest.mock import patch\nfrom vimdeploy.cli import app as cli\n"
        "with patch.object(sys, 'argv', ['vimdeploy', {}]):\n"
        "    try: cli.main()\n    except SystemExit: pass\n"
        "heavy = {{'torch', 'onnx', 'onnxruntime', 'numpy', 'PIL', 'pydantic', 'vimdeploy.commands.export'}}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    # Typer itself brings pydantic in to parse a command's options, where it is installed.
    for arguments, allowed in (("'--help'", []), ("'export', '--help'", ["pydantic"])):
        done = subprocess.run(
            [sys.executable, "-c", script.format(arguments)],
            env=subprocess_environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip().splitlines()[-1] in ("heavy: []", f"heavy: {allowed}")


@pytest.mark.parametrize("command", ["export", "verify", "predict", "inspect", "recipes"])
def test_every_command_explains_its_options(command):
    text = succeed(command, "--help").stdout
    assert "Usage:" in text
    assert "--json" in text


def test_no_command_shows_the_help():
    result = vimdeploy()
    assert "Usage:" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["exprot"], ["exprot"]),
        (["export"], ["checkpoint"]),
        (["export", "x.pth", "--nope"], ["--nope"]),
        (["verify", "x.onnx", "--samples", "0"], ["--samples"]),
        (["verify", "x.onnx", "--batch", "0"], ["--batch"]),
    ],
)
def test_a_mistyped_command_line_is_refused(arguments, words):
    refuse(*arguments, words=words)


# Bad input to export


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.system, (f"touch '{self.target}'",))


def bad_checkpoint(folder, kind):
    path = folder / "bad.pth"
    state = golden(SMALL).state()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif kind == "bomb":
        torch.save({"model": state, "hook": Bomb(folder / "executed")}, path)
    elif kind == "pickle bomb":
        path.write_bytes(pickle.dumps(Bomb(folder / "executed")))
    elif kind == "other architecture":
        torch.save({f"stages.{i}.conv.weight": torch.ones(2, 2) for i in range(12)}, path)
    elif kind == "nan":
        state["layers.1.mixer.D"][3] = float("nan")
        torch.save(state, path)
    elif kind == "no patch embedding":
        torch.save({k: v for k, v in state.items() if not k.startswith("patch_embed")}, path)
    elif kind == "15 patches":
        torch.save(golden("cls_rect").state(), path)
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", ["no such file"]),
        ("empty", ["is empty"]),
        ("truncated", ["truncated"]),
        ("text", ["pointer of Git LFS"]),
        ("folder", ["is a folder"]),
        ("bomb", ["would execute code", "system", "nothing was executed"]),
        ("pickle bomb", ["would execute code", "system", "nothing was executed"]),
        ("other architecture", ["stages.*.conv.weight (12x)"]),
        ("nan", ["layers.1.mixer.D", "--weights ema"]),
        ("no patch embedding", ["patch_embed.proj.weight"]),
        ("15 patches", ["15 patches", "img_size"]),
    ],
)
def test_a_bad_checkpoint_is_named_with_its_remedy_and_nothing_is_written(tmp_path, kind, words):
    path = bad_checkpoint(tmp_path, kind)
    refuse("export", path, words=[path, "try:", *words], folder=tmp_path)
    assert not (tmp_path / "executed").exists()
    inspected = vimdeploy("inspect", path)
    assert inspected.code in (0, 2)
    assert "Traceback" not in inspected.stderr
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "vim_tiny_patch16_22"], ["vim_tiny_patch16_22", "Did you mean 'vim_tiny_patch16_224'?"]),
        (["--recipe", "vim_tiny_patch16_224"], ["vim_tiny_patch16_224", "depth = 24", "3"]),
        (["--recipe", "nowhere.toml"], ["nowhere.toml"]),
        (["--model-args", '{"if_divide_outt": true}'], ["if_divide_outt", "Did you mean 'if_divide_out'?"]),
        (["--model-args", '{"num_classes": 1000}'], ["num_classes = 1000", "7"]),
        (["--model-args", '{"img_size": 224}'], ["img_size = 224 x 224", "--img-size"]),
        (["--model-args", '{"depth": "three"}'], ["depth"]),
        (["--model-args", "{"], ["--model-args"]),
        (["--model-args", "nowhere.json"], ["nowhere.json"]),
        (["--model-args", '{"final_pool_type": "max"}'], ["final_pool_type"]),
        (["--model-args", '{"flip_img_sequences_ratio": 0.5}'], ["at random"]),
        (["--weights", "ema"], ["--weights model"]),
        (["--weights", "emma"], ["--weights", "emma"]),
        (["--img-size", "big"], ["--img-size big"]),
        (["--img-size", "0"], ["--img-size 0"]),
        (["--img-size", "8"], ["smaller than one patch"]),
        (["--batch", "0"], ["--batch 0"]),
        (["--batch", "many"], ["--batch many"]),
        (["--opset", "17"], ["opset 17", "18"]),
        (["--opset", "99"], ["opset 99"]),
        (["--task", "clasify"], ["clasify", "classify"]),
        (["--task", "dense", "--model-args", '{"if_fpn": true}'], ["if_fpn"]),
    ],
)
def test_a_bad_argument_of_export_is_named_and_nothing_is_written(tmp_path, arguments, words):
    checkpoint = write_checkpoint(tmp_path, SMALL)
    refuse("export", checkpoint, *arguments, words=words, folder=tmp_path)


@pytest.mark.parametrize(
    ("output", "words"),
    [("missing/out.onnx", "mkdir -p"), ("file.txt/out.onnx", "cannot be written"), ("folder", "is a folder")],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path, output, words):
    (tmp_path / "file.txt").write_text("I am no folder")
    (tmp_path / "folder").mkdir()
    result = refuse("export", tmp_path / "never read.pth", "-o", tmp_path / output, folder=tmp_path)
    assert words in result.stderr
    assert str(tmp_path / output) in result.stderr


@pytest.mark.parametrize("link", [False, True])
def test_the_checkpoint_is_never_overwritten_by_its_export(tmp_path, link):
    checkpoint = write_checkpoint(tmp_path, SMALL)
    output = checkpoint
    if link:
        output = tmp_path / "link.onnx"
        output.symlink_to(checkpoint)
    refuse("export", checkpoint, "-o", output, words=[output, "is the checkpoint itself"], folder=tmp_path)


@pytest.mark.parametrize(("names", "words"), [("'nowhere'", "nowhere.txt"), ("['a', 'b']", "2 class names")])
def test_a_recipe_whose_class_names_are_missing_or_do_not_fit_is_refused(tmp_path, names, words):
    checkpoint = write_checkpoint(tmp_path, SMALL)
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        "name = 'mine'\ntitle = 'Mine'\nfamily = 'vim'\nparameters = 1\n[model]\nimg_size = 64\nembed_dim = 48\n"
        f"depth = 3\nnum_classes = 7\nrms_norm = false\n[input]\nsize = [64, 64]\n"
        f"[classes]\ncount = 7\nnames = {names}\n"
    )
    refuse("export", checkpoint, "--recipe", recipe, words=[words], folder=tmp_path)


def test_a_failed_verification_leaves_no_model_behind_and_keeps_the_one_before(copy, monkeypatch):
    from vimdeploy.graph import export as exporting

    right = exporting.export_onnx

    def wrong(*arguments, **options):
        model = right(*arguments, **options)
        scan = next(node for node in model.graph.node if node.op_type == "SelectiveScan")
        (skip,) = [tensor for tensor in model.graph.initializer if tensor.name == scan.input[3]]
        skip.raw_data = bytes(len(skip.raw_data))
        return model

    monkeypatch.setattr(exporting, "export_onnx", wrong)
    words = ["does not compute", "block 0", "Nothing was written"]
    refuse("export", copy / "cls_tiny.pth", code=1, words=words, folder=copy)
    refuse("export", copy / "cls_tiny.pth", "-o", copy / "new.onnx", code=1, words=words, folder=copy)


# Bad input to what reads an export


def foreign_onnx(folder):
    """Write a valid model that is none of ours."""
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 64, 64]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "foreign", value[:1], value[1:])
    onnx.save(helper.make_model(graph), folder / "cls_tiny.onnx")


def corrupt_onnx(folder):
    (folder / "cls_tiny.onnx").write_bytes(b"\x08\x0aoops" * 20)


def truncated_onnx(folder):
    path = folder / "cls_tiny.onnx"
    path.write_bytes(path.read_bytes()[:-3000])


def empty_onnx(folder):
    (folder / "cls_tiny.onnx").write_bytes(b"")


def no_onnx(folder):
    (folder / "cls_tiny.onnx").unlink()


def no_manifest(folder):
    (folder / "cls_tiny.onnx.json").unlink()


def change_manifest(folder, **values):
    path = folder / "cls_tiny.onnx.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def newer_manifest(folder):
    change_manifest(folder, schema_version=99)


def corrupt_manifest(folder):
    path = folder / "cls_tiny.onnx.json"
    path.write_text(path.read_text()[:200])


def binary_manifest(folder):
    (folder / "cls_tiny.onnx.json").write_bytes(b"\xff\xfe\x00")


def foreign_manifest(folder):
    (folder / "cls_tiny.onnx.json").write_text('{"name": "something else"}')


def incomplete_manifest(folder):
    change_manifest(folder, model={"family": "vim"})


@pytest.mark.parametrize(
    ("damage", "file", "words"),
    [
        (corrupt_onnx, "cls_tiny.onnx", {"verify": "ONNX", "predict": "its manifest describes"}),
        (truncated_onnx, "cls_tiny.onnx", {"verify": "ONNX", "predict": "its manifest describes"}),
        (empty_onnx, "cls_tiny.onnx", {"verify": "ONNX", "predict": "its manifest describes"}),
        (no_onnx, "cls_tiny.onnx", "no such file"),
        (newer_manifest, "cls_tiny.onnx.json", "Upgrade vimdeploy"),
        (corrupt_manifest, "cls_tiny.onnx.json", "not a readable JSON file"),
        (binary_manifest, "cls_tiny.onnx.json", "not a readable JSON file"),
        (foreign_manifest, "cls_tiny.onnx.json", "not a vimdeploy manifest"),
        (incomplete_manifest, "cls_tiny.onnx.json", "model."),
    ],
)
@pytest.mark.parametrize("command", ["verify", "predict"])
def test_a_damaged_export_is_refused_by_name(copy, damage, file, words, command):
    damage(copy)
    arguments = [copy / "photo.png"] if command == "predict" else []
    said = words[command] if isinstance(words, dict) else words
    refuse(command, copy / "cls_tiny.onnx", *arguments, words=[copy / file, said], folder=copy)


@pytest.mark.parametrize(
    "damage", [corrupt_onnx, truncated_onnx, empty_onnx, no_onnx, newer_manifest, corrupt_manifest, foreign_manifest]
)
def test_inspect_refuses_damaged_files_by_name(copy, damage):
    damage(copy)
    file = "cls_tiny.onnx.json" if "manifest" in damage.__name__ else "cls_tiny.onnx"
    refuse("inspect", copy / file, words=[copy / file], folder=copy)


@pytest.mark.parametrize("command", ["verify", "predict"])
def test_a_foreign_model_is_refused_with_and_without_a_manifest(copy, command):
    foreign_onnx(copy)
    arguments = [copy / "photo.png"] if command == "predict" else []
    refuse(command, copy / "cls_tiny.onnx", *arguments, words=[copy / "cls_tiny.onnx"], folder=copy)
    no_manifest(copy)
    refuse(command, copy / "cls_tiny.onnx", *arguments, words=["cls_tiny.onnx.json", "missing"], folder=copy)


def test_inspect_describes_a_foreign_model(copy):
    foreign_onnx(copy)
    no_manifest(copy)
    facts = succeed("inspect", copy / "cls_tiny.onnx", "--json").json()
    assert facts["operators"] == {"Relu": 1}


def test_predict_refuses_a_model_with_other_classes_than_its_manifest(copy):
    change_manifest(copy, classes={"count": 3, "names": ["a", "b", "c"]})
    words = [copy / "cls_tiny.onnx", "10 logits", "3 classes"]
    refuse("predict", copy / "cls_tiny.onnx", copy / "photo.png", words=words, folder=copy)


@pytest.mark.parametrize("name", ["notes.txt", "missing.pth", "missing.onnx", "no_suffix"])
def test_inspect_refuses_what_it_does_not_know(tmp_path, name):
    if not name.startswith("missing"):
        (tmp_path / name).write_text("hello")
    refuse("inspect", tmp_path / name, words=[tmp_path / name], folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "content"), [("missing.png", None), ("text.png", b"hello"), ("empty.png", b""), ("cut.png", "cut")]
)
def test_an_image_that_cannot_be_read_is_named(copy, name, content):
    if content is not None:
        whole = (copy / "photo.png").read_bytes()
        (copy / name).write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    refuse("predict", copy / "cls_tiny.onnx", copy / name, words=[copy / name], folder=copy)


def test_a_folder_of_images_that_is_missing_or_holds_none_is_named(copy):
    (copy / "empty").mkdir()
    for folder in (copy / "nowhere", copy / "empty"):
        refuse("verify", copy / "cls_tiny.onnx", "--images", folder, words=[folder], folder=copy)


def test_a_report_that_cannot_be_written_is_named(copy):
    report = copy / "missing" / "report.json"
    refuse("verify", copy / "cls_tiny.onnx", "--samples", 1, "-o", report, words=[report, "mkdir -p"], folder=copy)


# The real process


def test_a_real_process_ends_with_the_exit_code_and_without_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vimdeploy", "export", str(tmp_path / "no.pth")],
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "no.pth" in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(tmp_path) == {}


def test_an_unforeseen_error_asks_for_a_report_and_shows_its_traceback_on_request(home, monkeypatch):
    from vimdeploy.commands import inspect

    def broken(_path):
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(inspect, "_facts", broken)
    result = vimdeploy("inspect", home / "cls_tiny.pth")
    assert result.code == 70
    assert "surprise" in result.stderr
    assert "report" in result.stderr
    assert "Traceback" not in result.stderr
