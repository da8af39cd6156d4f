import sys
import types
from pathlib import Path

import dense_cases
import numpy as np
import pytest
import torch
import vmamba_cases
from dense_cases import golden as dense_golden
from dense_cases import make as make_dense
from goldens import golden as vim_golden

from vimdeploy.artifacts.recipe import recipes
from vimdeploy.errors import CheckpointError, ModelError, UsageError
from vimdeploy.models.checkpoint.reading import Checkpoint
from vimdeploy.models.load import ModelRequest, load_model
from vimdeploy.models.registry import build, recognise
from vimdeploy.models.vim.dense_config import VimDenseConfig, read_dense_arguments
from vimdeploy.models.vmamba.config import VmambaConfig, read_vmamba_arguments

OTHERS = [name for name, recipe in recipes().items() if recipe.family in ("vmamba", "vim_dense")]
BACKBONE = {"dims": 16, "depths": [1, 1, 1, 1], "ssm_d_state": 1, "ssm_ratio": 1.0, "forward_type": "v05_noz"}


def save(folder, state, **beside):
    path = Path(folder) / "checkpoint.pth"
    torch.save({"model": state, **beside}, path)
    return path


def run(model, images):
    with torch.no_grad():
        outputs = model(images)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def assert_same(outputs, expected):
    assert len(outputs) == len(expected)
    for mine, theirs in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-4, atol=1e-4, equal_nan=False)


def config_of(recipe):
    if recipe.family == "vmamba":
        return VmambaConfig(**read_vmamba_arguments(recipe.model, recipe.name).values)
    return VimDenseConfig(**read_dense_arguments(recipe.model, recipe.name).values)


@pytest.mark.parametrize("name", OTHERS)
def test_a_released_model_is_recognised_by_its_shapes(name):
    recipe = recipes()[name]
    config = config_of(recipe)
    with torch.device("meta"):
        model = build(config)
    assert sum(p.numel() for p in model.parameters()) == recipe.parameters
    checkpoint = Checkpoint(Path("weights.pth"), "", model.state_dict(), "model", {}, ())
    _, recognised = recognise(checkpoint, {}, None, dense=False)
    if recipe.family == "vmamba":
        assert (recognised.recipe, recognised.config) == (recipe, config)
    else:  # a residual in half precision or not is the same function in float32, and nothing in the weights
        assert recognised.config.out_indices == config.out_indices
        assert recognised.config.img_size == config.img_size
        assert recognised.config.feature_names == config.feature_names
        assert recognised.config.if_rope_residual == config.if_rope_residual
    _, by_name = recognise(checkpoint, {}, recipe, dense=False)
    assert (by_name.recipe, by_name.config) == (recipe, config)


def test_there_are_recipes_of_every_released_model():
    released = [f"vmamba_{size}_{kind}" for size in ("tiny", "small", "base") for kind in ("v0", "s2l15", "s1l20")]
    released = [name.replace("tiny_s2l15", "tiny_s2l5").replace("tiny_s1l20", "tiny_s1l8") for name in released]
    assert {*released, "vim_tiny_upernet_512", "vim_small_upernet_512", "vim_tiny_vimdet_1024"} <= {*recipes()}


@pytest.mark.parametrize("name", vmamba_cases.GOLDENS)
def test_a_vmamba_classifier_loads_from_its_weights_alone(name, tmp_path):
    model, arrays = vmamba_cases.golden(name)
    loaded = load_model(save(tmp_path, model.state_dict()), ModelRequest(img_size=(64, 64)))
    assert loaded.config.family == "vmamba"
    assert_same(run(loaded.model, torch.from_numpy(arrays["images"])), [arrays["logits"]])


def test_a_vmamba_of_the_first_release_loads_under_its_old_keys(tmp_path):
    model, arrays = vmamba_cases.golden("vmamba_v0")
    old = {}
    for key, value in model.state_dict().items():
        name = key.replace(".norm.", ".ln_1.") if ".blocks." in key else key.replace("classifier.", "")
        old[name.replace(".op.", ".self_attention.").replace("patch_embed.0", "patch_embed.proj")] = value
    loaded = load_model(save(tmp_path, old), ModelRequest(img_size=(64, 64)))
    assert_same(run(loaded.model, torch.from_numpy(arrays["images"])), [arrays["logits"]])


def test_the_configuration_object_beside_vmamba_weights_is_no_obstacle(tmp_path, monkeypatch):
    class CfgNode(dict):
        def __init__(self, values):
            super().__init__(values)
            self.__dict__["__immutable__"] = True

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode
    model, arrays = vmamba_cases.golden("vmamba_v05")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", module)
        path = save(tmp_path, model.state_dict(), config=CfgNode({"MODEL": CfgNode({"NAME": "vssm"})}), epoch=3)
    assert b"yacs.config" in path.read_bytes()
    loaded = load_model(path, ModelRequest(img_size=(64, 64)))
    assert_same(run(loaded.model, torch.from_numpy(arrays["images"])), [arrays["logits"]])


@pytest.mark.parametrize(("name", "prefix"), [("seg_fpn", "backbone."), ("det_rope", "backbone.net."), ("seg_fpn", "")])
def test_a_dense_vim_is_taken_out_of_a_whole_detector_or_segmentor(name, prefix, tmp_path):
    model, images, expected = dense_golden(name)
    state = {prefix + key: value for key, value in model.state_dict().items()}
    if prefix:
        state |= {
            "decode_head.conv.weight": torch.zeros(1),
            "roi_heads.a": torch.zeros(1),
            "roi_heads.b": torch.zeros(1),
        }
    if prefix == "backbone.net.":
        state["backbone.simfp_2.0.weight"] = torch.zeros(2)
    loaded = load_model(save(tmp_path, state))
    assert loaded.config.family == "vim_dense"
    assert loaded.config.kind == name[:3]
    assert_same(run(loaded.model, images), expected)
    said = " ".join(loaded.notes)
    assert ("decode_head (1), roi_heads (2)" in said) == bool(prefix)
    assert ("backbone.simfp_2 (1)" in said) == (prefix == "backbone.net.")


def test_a_vmamba_backbone_is_taken_out_of_a_segmentor(tmp_path):
    model = vmamba_cases.make(**BACKBONE, out_indices=[0, 1, 2, 3])
    state = {"backbone." + key: value for key, value in model.state_dict().items()}
    loaded = load_model(save(tmp_path, {**state, "decode_head.conv_seg.weight": torch.zeros(1)}))
    assert loaded.config.family == "vmamba_dense"
    assert loaded.config.feature_names == ("p2", "p3", "p4", "p5")
    images = torch.from_numpy(vmamba_cases.image("seg", (1, 3, 64, 64)))
    assert_same(run(loaded.model, images), [m.numpy() for m in run(model, images)])


def test_a_vmamba_classifier_serves_as_a_backbone(tmp_path):
    model = vmamba_cases.make(**BACKBONE, num_classes=7)
    path = save(tmp_path, model.state_dict())
    loaded = load_model(path, ModelRequest(task="dense", model_args={"out_indices": [1, 3]}))
    assert loaded.config.feature_names == ("p3", "p5")
    assert any("untrained norms" in note for note in loaded.notes)
    images = torch.from_numpy(vmamba_cases.image("seg", (1, 3, 64, 64)))
    with torch.no_grad():
        last = torch.nn.functional.layer_norm(model.encode(images), (128,)).permute(0, 3, 1, 2)
    assert_same(run(loaded.model, images)[1:], [last.numpy()])


@pytest.mark.parametrize("name", ["cls_tiny", "cls_double", "mean_pool"])
def test_a_vim_classifier_serves_as_a_backbone(name, tmp_path):
    golden = vim_golden(name)
    depth = golden.config.depth
    path = save(tmp_path, golden.state())
    loaded = load_model(path, ModelRequest(task="dense"))
    assert loaded.config.family == "vim_dense"
    assert loaded.config.out_indices[-1] == depth - 1
    model = golden.model()
    rows = [row for row in range(golden.config.num_tokens) if row not in golden.config.class_tokens]
    assert torch.equal(loaded.model.pos_embed, model.pos_embed[:, rows])
    with torch.no_grad():
        patches = model.patch_embed(golden.images) + model.pos_embed[:, rows]
        hidden, _ = model._run_layers(patches)
    last = run(loaded.model, golden.images)[-1]
    assert_same([last.flatten(2).transpose(1, 2)], [hidden.numpy()])
    assert ("drops row 0" in " ".join(loaded.notes)) == (name != "mean_pool")
    # What the manifest keeps loads the same model again.
    again = load_model(path, ModelRequest(task="dense", model_args=loaded.recognised.config.official()))
    assert again.config == loaded.config


def test_a_backbone_is_resized_to_an_image_that_is_not_square(tmp_path):
    model = make_dense(img_size=64, embed_dim=16, depth=2, out_indices=[0, 1], kind="seg")
    loaded = load_model(save(tmp_path, model.state_dict()), ModelRequest(img_size=(96, 160)))
    maps = run(loaded.model, torch.zeros(1, 3, 96, 160))
    assert [tuple(m.shape) for m in maps] == [(1, 16, 24, 40), (1, 16, 12, 20)]
    assert any("square" in note for note in loaded.notes + loaded.config.notes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ssm_d_state": 16}, "ssm_d_state = 16"),
        ({"forward_type": "v05"}, "no gate"),
        ({"forward_type": "v05_onnone_noz"}, "layernorm"),
        ({"dims": 24}, "dims"),
        ({"ssm_ratio": 2.0}, "ssm_ratio"),
    ],
)
def test_arguments_that_contradict_vmamba_weights_are_refused(arguments, words, tmp_path):
    path = save(tmp_path, vmamba_cases.make(**BACKBONE).state_dict())
    with pytest.raises(UsageError) as caught:
        load_model(path, ModelRequest(model_args=arguments))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ({"ssm_dt_rank": 1, "depths": [1]}, {"ssm_dt_rank": 1}),  # what "auto" makes of 16 channels
        ({"mlp_ratio": 0.0}, {"gmlp": True}),
        ({"patchembed_version": "v2", "patch_size": 5}, {"patch_size": 5}),
        ({"posembed": True, "imgsize": 50}, {"imgsize": 50}),
        ({"out_indices": [0, 2]}, {"out_indices": [2, 0, 0], "num_classes": 80}),
        ({"ssm_conv": -1}, {"ssm_conv": 0, "ssm_conv_bias": True}),
    ],
)
def test_arguments_that_make_the_same_vmamba_do_not_contradict_it(arguments, given, tmp_path):
    path = save(tmp_path, vmamba_cases.make(**{**BACKBONE, "num_classes": 5, **arguments}).state_dict())
    with_them = load_model(path, ModelRequest(model_args=given))
    images = torch.zeros(1, 3, *with_them.config.img_size)
    alone = load_model(path, ModelRequest(img_size=with_them.config.img_size))
    assert_same(run(with_them.model, images), [m.numpy() for m in run(alone.model, images)])


def test_a_detection_backbone_does_not_read_what_its_constructor_only_takes(tmp_path):
    arguments, images, expected = dense_cases.options()["det_v1_cls_rope"]
    path = save(tmp_path, make_dense(**arguments).state_dict())
    given = {**arguments, "out_indices": [0], "if_rope_residual": False}  # which the shipped configurations set
    loaded = load_model(path, ModelRequest(model_args=given))
    assert_same(run(loaded.model, images), expected)
    assert any("out_indices, if_fpn" in note for note in loaded.notes)
    classifier = save(tmp_path, vim_golden("cls_tiny").state())
    taken = load_model(classifier, ModelRequest(task="dense", model_args={"kind": "det", "if_fpn": True}))
    assert taken.config.feature_names == ("last_feat",)


@pytest.mark.parametrize("case", dense_cases.options())
def test_a_dense_vim_is_recognised_with_its_arguments(case, tmp_path):
    arguments, images, expected = dense_cases.options()[case]
    model = make_dense(**arguments)
    path = save(tmp_path, model.state_dict())
    loaded = load_model(path, ModelRequest(task="dense", model_args=model.config.official()))
    assert_same(run(loaded.model, images), expected)
    assert loaded.config.feature_names == model.config.feature_names
    said = loaded.recognised.sources
    assert {"in_chans", "if_divide_out", "last_layer_process", "norm_epsilon", "use_fast_path"} <= set(said)
    assert ("use_residual_as_feature" in said) == (arguments["kind"] == "seg")


def test_weights_without_a_head_are_said_to_have_none(tmp_path):
    arguments, *_ = dense_cases.options()["plain_two"]
    loaded = load_model(save(tmp_path, make_dense(**arguments).state_dict()))
    assert loaded.config.family == "vim"
    assert any("no head" in note and "--task dense" in note for note in loaded.notes)


def _without(state, *ends):
    return {key: value for key, value in state.items() if not key.endswith(ends)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: _without(s, "layers.1.blocks.0.op.dt_projs_weight"),
            "layers.1.blocks.0.op.dt_projs_weight is missing",
        ),
        (lambda s: _without(s, "layers.0.blocks.0.mlp.fc1.weight"), "mlp.fc1.weight is missing"),
        (lambda s: _without(s, *(k for k in s if k.startswith("layers.1."))), "missing"),
        (lambda s: {**s, "layers.0.blocks.0.op.A_logs": torch.tensor(1.0)}, "A_logs has shape ()"),
        (lambda s: {**s, "patch_embed.0.weight": torch.zeros(0)}, "patch_embed.0.weight has shape (0,)"),
        (lambda s: {**s, "classifier.head.weight": torch.zeros(5)}, "classifier.head.weight has shape (5,)"),
        (lambda s: {**s, "layers.2.blocks.7.op.Ds": torch.zeros(4)}, "missing"),
        (lambda s: {**s, "outnorm9.weight": torch.zeros(4)}, "outnorm9.weight"),
    ],
)
def test_a_vmamba_with_a_gap_is_named_and_not_an_accident(change, words, tmp_path):
    state = vmamba_cases.make(**{**BACKBONE, "depths": [1, 1, 1], "num_classes": 5}).state_dict()
    path = save(tmp_path, change(state))
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert words in caught.value.message
    assert str(path) in caught.value.message


def test_an_image_too_small_for_vmamba_is_refused(tmp_path):
    state = vmamba_cases.make(**{**BACKBONE, "depths": [1, 1, 1], "downsample_version": "v2"}).state_dict()
    with pytest.raises(ModelError, match="too small"):
        load_model(save(tmp_path, state), ModelRequest(img_size=(8, 64)))
    with pytest.raises(ModelError, match="too small"):
        load_model(None, ModelRequest(arch="vanilla_vmamba_tiny", img_size=(2, 2)))


def test_what_shapes_cannot_tell_has_to_be_said(tmp_path):
    path = save(tmp_path, vmamba_cases.make(**{**BACKBONE, "forward_type": "v05_onnone_noz"}).state_dict())
    with pytest.raises(UsageError, match="_onsoftmax"):
        load_model(path)
    loaded = load_model(path, ModelRequest(model_args={"forward_type": "v052d_onsigmoid_noz"}))
    assert loaded.config.kind.out_norm == "sigmoid"


def test_every_option_that_shapes_tell_is_found():
    hidden = {"ssm_act_layer", "mlp_act_layer", "ssm_init", "drop_path_rate", "imgsize", "forward_type", "norm_layer"}
    for name, (arguments, *_) in vmamba_cases.options().items():
        if name.startswith(("onnone", "onsoftmax", "onsigmoid", "no_ssm", "v052d_sigmoid")):
            continue
        config = VmambaConfig(**read_vmamba_arguments(arguments, "test").values)
        with torch.device("meta"):
            state = build(config).state_dict()
        _, recognised = recognise(Checkpoint(Path("x.pth"), "", state, "model", {}, ()), {}, None, dense=False)
        found, wanted = recognised.config.official(), config.official()
        ignored = hidden | {"ssm_conv", "ssm_conv_bias"} if config.kind.original else hidden
        ignored = ignored | {"ssm_conv_bias"} if config.ssm_conv < 2 else ignored
        ignored = ignored | {"num_classes"} if config.out_indices else ignored
        wanted["out_indices"] = sorted(set(config.out_indices))
        if config.patchembed_version == "v2":  # which reads the half alone
            wanted["patch_size"] = config.patch_size // 2 * 2
        differences = {key for key in wanted if wanted[key] != found.get(key, [])} - ignored
        assert not differences, name
        assert recognised.config.kind.gated == config.kind.gated
        assert recognised.config.kind.out_norm == config.kind.out_norm


def test_weights_of_no_family_are_named(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        load_model(save(tmp_path, {"fc.weight": torch.zeros(2)}))
    assert "neither a Vision Mamba nor a VMamba" in str(caught.value)
    assert "fc.weight" in str(caught.value)


def test_a_recipe_of_another_family_is_refused(tmp_path):
    path = save(tmp_path, vmamba_cases.make(**BACKBONE).state_dict())
    with pytest.raises(UsageError, match="holds a VMamba"):
        load_model(path, ModelRequest(recipe="vim_tiny_patch16_224"))
    path = save(tmp_path, vim_golden("cls_tiny").state())
    with pytest.raises(UsageError, match="is a backbone"):
        load_model(path, ModelRequest(recipe="vim_tiny_upernet_512"))
    with pytest.raises(ModelError, match="no weights for the pyramid"):
        load_model(path, ModelRequest(task="dense", model_args={"if_fpn": True}))
