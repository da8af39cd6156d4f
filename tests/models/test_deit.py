import re
import sys

import pytest
import torch
import torch.nn.functional as F
from vmamba_cases import image, trained_like_arrays

from vimdeploy.artifacts.recipe import recipes
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.errors import CheckpointError, MissingDependencyError, ModelError, UsageError
from vimdeploy.graph.check import check_model
from vimdeploy.graph.export import export_onnx
from vimdeploy.models.load import ModelRequest, load_model
from vimdeploy.models.registry import build, config_of

DIM, DEPTH, CLASSES = 64, 2, 5


def timm_weights(side=4, **more):
    """Return the weights of a small DeiT under the official keys."""
    shapes = {
        "cls_token": (1, 1, DIM),
        "pos_embed": (1, 1 + side * side, DIM),
        "patch_embed.proj.weight": (DIM, 3, 16, 16),
        "patch_embed.proj.bias": (DIM,),
        **{f"norm.{kind}": (DIM,) for kind in ("weight", "bias")},
        "head.weight": (CLASSES, DIM),
        "head.bias": (CLASSES,),
    }
    for i in range(DEPTH):
        for name, rows, columns in (("attn.qkv", 3 * DIM, DIM), ("attn.proj", DIM, DIM), ("mlp.fc1", 4 * DIM, DIM)):
            shapes |= {f"blocks.{i}.{name}.weight": (rows, columns), f"blocks.{i}.{name}.bias": (rows,)}
        shapes |= {f"blocks.{i}.mlp.fc2.weight": (DIM, 4 * DIM), f"blocks.{i}.mlp.fc2.bias": (DIM,)}
        shapes |= {f"blocks.{i}.{norm}.{kind}": (DIM,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
    return {key: torch.from_numpy(value) for key, value in trained_like_arrays({**shapes, **more}).items()}


def reference(w, images):
    """Compute the logits of a DeiT with one head of 64 channels, as the paper describes it."""

    def linear(x, name):
        return F.linear(x, w[name + ".weight"], w[name + ".bias"])

    def norm(x, name):
        return F.layer_norm(x, (DIM,), w[name + ".weight"], w[name + ".bias"], 1e-6)

    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16).flatten(2).mT
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pos_embed"]
    for i in range(DEPTH):
        q, k, v = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, -1)
        x = x + linear((q @ k.mT / DIM**0.5).softmax(-1) @ v, f"blocks.{i}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
        x = x + linear(hidden, f"blocks.{i}.mlp.fc2")
    return linear(norm(x, "norm")[:, 0], "head")


def transformers_4(state):
    """Rename and split timm's keys as the checkpoints on the Hugging Face hub have them."""
    parts = {"attn.proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    parts |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    plain = {"cls_token": "vit.embeddings.cls_token", "pos_embed": "vit.embeddings.position_embeddings"}
    renamed = {}
    for key, value in state.items():
        if match := re.match(r"blocks\.(\d+)\.(.+)\.(weight|bias)", key):
            layer, part, kind = match.groups()
            if part == "attn.qkv":
                for name, chunk in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    renamed[f"vit.encoder.layer.{layer}.attention.attention.{name}.{kind}"] = chunk
            else:
                renamed[f"vit.encoder.layer.{layer}.{parts[part]}.{kind}"] = value
        else:
            name = key.replace("patch_embed.proj", "vit.embeddings.patch_embeddings.projection")
            name = re.sub(r"^norm", "vit.layernorm", re.sub(r"^head", "classifier", name))
            renamed[plain.get(key, name)] = value
    return renamed


@pytest.fixture
def weights(tmp_path):
    state = timm_weights()
    path = tmp_path / "deit.pth"
    torch.save({"model": state}, path)
    return path, state


IMAGES = torch.from_numpy(image("deit", (2, 3, 64, 64)))


@pytest.mark.parametrize("layout", ["timm", "transformers 4", "transformers 5"])
def test_a_checkpoint_of_either_library_computes_the_paper(layout, tmp_path):
    state = timm_weights()
    saved = {"timm": state, "transformers 4": transformers_4(state)}.get(layout)
    if saved is None:
        torch.save({"model": state}, tmp_path / "first.pth")
        saved = load_model(tmp_path / "first.pth").model.net.state_dict()
    torch.save({"model": saved}, tmp_path / "deit.pth")
    loaded = load_model(tmp_path / "deit.pth")
    assert loaded.config.family == "deit"
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(IMAGES), reference(state, IMAGES), rtol=1e-4, atol=1e-4)


def test_the_export_has_no_custom_op(weights):
    path, state = weights
    model = load_model(path).model
    for task, shape in (("classify", (2, CLASSES)), ("features", (2, DIM)), ("tokens", (2, 17, DIM))):
        exported = export_onnx(model, task=task)
        check_model(exported, task)
        assert {node.domain for node in exported.graph.node} == {""}
        assert not exported.functions
        output = next(iter(OnnxBackend(exported).run(IMAGES.numpy()).values()))
        assert output.shape == shape
        if task == "classify":
            torch.testing.assert_close(torch.from_numpy(output), reference(state, IMAGES), rtol=1e-4, atol=1e-4)


def test_position_embeddings_are_resized_beside_the_class_token(weights):
    path, state = weights
    loaded = load_model(path, ModelRequest(img_size=(96, 32)))
    rows = next(value for key, value in loaded.model.net.state_dict().items() if "position_embeddings" in key)
    assert rows.shape == (1, 13, DIM)
    assert torch.equal(rows[:, 0], state["pos_embed"][:, 0])
    with torch.no_grad():
        assert loaded.model(torch.zeros(1, 3, 96, 32)).shape == (1, CLASSES)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"])
def test_recipes_have_the_published_sizes(name):
    with torch.device("meta"):
        model = build(config_of(recipes()[name]))
    assert sum(p.numel() for p in model.parameters()) == recipes()[name].parameters


def test_random_weights_are_the_same_every_time():
    request = ModelRequest(arch="deit_tiny_patch16_224", img_size=(32, 32))
    before = torch.random.get_rng_state()
    first, second = load_model(None, request), load_model(None, request)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.config.img_size == (32, 32)
    images = torch.from_numpy(image("deit", (1, 3, 32, 32)))
    with torch.no_grad():
        assert torch.equal(first.model(images), second.model(images))
    assert any("random weights" in note for note in first.notes)


def test_what_is_no_plain_deit_is_refused(weights, tmp_path):
    path, state = weights
    torch.save({"model": {**state, "dist_token": torch.zeros(1, 1, DIM)}}, tmp_path / "distilled.pth")
    with pytest.raises(ModelError, match="distilled"):
        load_model(tmp_path / "distilled.pth")
    torch.save({"model": {**state, "blocks.0.attn.rel_pos": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="rel_pos"):
        load_model(tmp_path / "other.pth")
    with pytest.raises(UsageError, match="baseline"):
        load_model(path, ModelRequest(task="dense"))
    with pytest.raises(UsageError, match="depth"):
        load_model(path, ModelRequest(model_args={"depth": 3}))
    for heads in (0, 5):
        with pytest.raises(UsageError, match=r"num_heads"):
            load_model(path, ModelRequest(model_args={"num_heads": heads}))
    with pytest.raises(ModelError, match="smaller than one patch"):
        load_model(path, ModelRequest(img_size=(7, 64)))
    torch.save({"model": {**state, "head.weight": torch.zeros(3)}}, tmp_path / "shape.pth")
    with pytest.raises(CheckpointError, match=r"head\.weight has shape"):
        load_model(tmp_path / "shape.pth")
    with pytest.raises(UsageError, match="no checkpoint"):
        load_model(None)


def test_a_missing_library_is_named(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match="transformers"):
        load_model(weights[0])
