import json

import numpy as np
import pytest
import torch
from vmamba_cases import DATA, GOLDENS, golden, image, make, options, trained_like

from vimdeploy.errors import ModelError, UsageError
from vimdeploy.models.family import fold
from vimdeploy.models.vmamba.config import ForwardType, VmambaConfig, read_vmamba_arguments
from vimdeploy.models.vmamba.model import VSSM, VSSMBackbone, make_vmamba
from vimdeploy.models.vmamba.ss2d import SS2D, FoldedSS2D

OPTIONS = options()
TINY = {
    "dims": 16,
    "depths": [1, 1],
    "num_classes": 5,
    "ssm_d_state": 1,
    "ssm_ratio": 1.0,
    "forward_type": "v05_noz",
    "norm_layer": "ln2d",
}
V05_NOZ = {"forward_type": "v05_noz", "norm_layer": "ln2d", "downsample_version": "v3", "patchembed_version": "v2"}
V2 = {**V05_NOZ, "ssm_d_state": 1, "ssm_conv_bias": False}
V0 = {"forward_type": "v0", "mlp_ratio": 0.0, "downsample_version": "v1"}
RELEASED = {
    # official constructors at the end of vmamba.py
    "vanilla_vmamba_tiny": (22_893_448, {**V0, "depths": [2, 2, 9, 2], "dims": 96}),
    "vmamba_tiny_s2l5": (30_705_832, {**V2, "depths": [2, 2, 5, 2], "dims": 96, "ssm_ratio": 2.0}),
    "vmamba_tiny_s1l8": (30_249_064, {**V2, "depths": [2, 2, 8, 2], "dims": 96, "ssm_ratio": 1.0}),
}


def assert_matches(actual, expected):
    """Compare at the goldens' tolerance; NaN never passes."""
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-4, atol=1e-4, equal_nan=False)


def stages(model, images):
    """Return what the official model holds after each block and stage, channels-last."""
    held = {}
    with torch.no_grad():
        x = held["patch_embed"] = model.embed(images)
        for i, layer in enumerate(model.layers):
            for j, block in enumerate(layer.blocks):
                x = held[f"block{i}_{j}"] = block(x)
            x = held[f"stage{i}"] = layer.downsample(x)
        held["logits"] = model.classifier(x)
    return held


@pytest.mark.parametrize("folded", [False, True], ids=["plain", "folded"])
@pytest.mark.parametrize("name", GOLDENS)
def test_every_stage_equals_the_official_one(name, folded):
    model, arrays = golden(name)
    channels_first = model.config.norm_layer != "ln"
    held = stages(fold(model) if folded else model, torch.from_numpy(arrays["images"]))
    for key, value in held.items():
        assert_matches(value.permute(0, 3, 1, 2) if channels_first and value.dim() == 4 else value, arrays[key])


def test_the_golden_covers_every_stage():
    _, arrays = golden("vmamba_v05")
    assert {"patch_embed", "stage0", "stage3", "block0_0", "block2_1", "logits"} <= set(arrays)


@pytest.mark.parametrize("case", OPTIONS)
def test_every_option_equals_the_official_one(case):
    arguments, images, parameters, expected = OPTIONS[case]
    model = make(**arguments)
    assert sum(p.numel() for p in model.parameters()) == parameters
    with torch.no_grad():
        for form in (model, fold(model)):
            outputs = form(images)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            assert len(outputs) == len(expected)
            for output, reference in zip(outputs, expected, strict=True):
                assert_matches(output, reference)


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_have_the_official_keys(name):
    parameters, arguments = RELEASED[name]
    expected = {}
    for line in (DATA / f"keys_{name}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            key, shape, _ = line.split("\t")
            expected[key] = tuple(int(size) for size in shape.split(",") if size)
    with torch.device("meta"):
        model = make_vmamba(VmambaConfig(**read_vmamba_arguments(arguments, "test").values))
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("case", ["v05_gated", "v052d_gated", "oncnorm_ln"])
def test_gradients_flow_and_equal_the_references(case):
    arguments, images, _, _ = OPTIONS[case]
    model = make(**arguments)
    model(images).sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    with torch.no_grad():
        inference = model(images)
    assert_matches(model(images), inference.numpy())


def test_training_uses_stochastic_depth_and_checkpointing():
    model = make(**TINY, drop_path_rate=0.5, use_checkpoint=True).train()
    images = torch.from_numpy(image("train", (2, 3, 32, 32)))
    torch.manual_seed(0)
    outputs = [model(images) for _ in range(6)]
    assert any(not torch.equal(outputs[0], other) for other in outputs[1:])
    outputs[0].sum().backward()
    assert model.layers[0].blocks[0].op.A_logs.grad is not None


def test_folding_leaves_the_model_as_it_was():
    model = make(**TINY)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold(model)
    assert isinstance(model.layers[0].blocks[0].op, SS2D)
    assert isinstance(folded.layers[0].blocks[0].op, FoldedSS2D)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_older_checkpoints_load_under_todays_keys():
    model = make(**{**TINY, "norm_layer": "ln"}, downsample_version="v1", mlp_ratio=2.0)
    state = model.state_dict()
    old = {}
    for key, value in state.items():
        name = key.replace(".norm.", ".ln_1.") if ".blocks." in key else key
        name = name.replace(".op.", ".self_attention.").replace("patch_embed.0", "patch_embed.proj")
        name = name.replace("patch_embed.2", "patch_embed.norm").replace("classifier.", "")
        conv_shaped = key.endswith(("in_proj.weight", "fc1.weight"))
        old[name] = value[:, :, None, None] if conv_shaped else value
    assert not set(old) & {key for key in state if "blocks.0.norm." in key or "classifier" in key}
    fresh = make_vmamba(model.config)
    fresh.load_state_dict(old)
    assert all(torch.equal(state[key], value) for key, value in fresh.state_dict().items())


def test_position_embeddings_are_resized_as_the_official_code_does():
    small = make(**TINY, posembed=True, imgsize=32)
    large = make(**TINY, posembed=True, imgsize=[48, 64])
    large.load_state_dict(small.state_dict())
    expected = torch.nn.functional.interpolate(small.pos_embed, size=(12, 16), mode="bicubic", align_corners=False)
    torch.testing.assert_close(large.pos_embed, expected)
    with torch.no_grad():
        assert large(torch.zeros(1, 3, 48, 64)).shape == (1, 5)
        with pytest.raises(ValueError, match="position"):
            large(torch.zeros(1, 3, 64, 64))


def test_tokens_and_features_are_those_that_the_head_reads():
    model, arrays = golden("vmamba_v05")
    images = torch.from_numpy(arrays["images"])
    with torch.no_grad():
        tokens, features = model.forward_tokens(images), model.forward_features(images)
        assert tokens.shape == (2, 4, 192)
        torch.testing.assert_close(tokens.mean(1), features)
        assert_matches(model.classifier.head(features), arrays["logits"])


def test_a_backbone_names_its_maps_by_stride():
    model = make(**{**TINY, "depths": [1, 1, 1, 1]}, out_indices=[0, 2, 3])
    assert isinstance(model, VSSMBackbone)
    assert model.config.feature_names == ("p2", "p4", "p5")
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 16, 16, 24), (1, 64, 4, 6), (1, 128, 2, 3)]
    assert not any(key.startswith("classifier") for key in model.state_dict())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"forward_type": "v2"}, "asserts"),
        ({"forward_type": "v052dc_noz"}, "turning them back"),
        ({"forward_type": "v052d3"}, "debugging"),
        ({"forward_type": "v05_noz_onnone"}, "does not exist"),
        ({"forward_type": "v6"}, "does not exist"),
        ({"forward_type": "v0_noz"}, "no suffix"),
        ({"forward_type": "v0", "norm_layer": "ln2d"}, "asserts"),
        ({"forward_type": "xv1a"}, "not served"),
        ({"forward_type": "m0_noz"}, "mamba2"),
        ({"ssm_conv": 4}, "even"),
        ({"downsample_version": "none"}, "crashes"),
        ({"posembed": True, "imgsize": 50, "patchembed_version": "v2"}, "multiple of 4"),
        ({"out_indices": [4]}, "do not exist"),
        ({"patch_size": 1, "patchembed_version": "v2"}, "too small"),
    ],
)
def test_what_the_official_code_cannot_run_is_refused(arguments, words):
    values = read_vmamba_arguments(arguments, "test").values
    with pytest.raises(ModelError) as caught:
        VmambaConfig(**values)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ssm_dstate": 16}, "ssm_d_state"),
        ({"norm_layer": "layernorm"}, "ln"),
        ({"ssm_act_layer": "swish"}, "Known"),
        ({"depths": 4}, "list of integers"),
        ({"gmlp": "yes"}, "must be a bool"),
        ({"depths": [1, 1], "dims": [16]}, "one entry per stage"),
        ({"imgsize": [32]}, "imgsize must be"),
        ({"imgsize": 0}, "imgsize must be"),
    ],
)
def test_options_that_do_not_exist_are_named(arguments, words):
    with pytest.raises(UsageError) as caught:
        VmambaConfig(**read_vmamba_arguments(arguments, "test").values)
    assert words in str(caught.value)


def test_the_stem_of_two_convolutions_has_the_stride_that_the_names_say():
    arguments = {**TINY, "patchembed_version": "v2", "out_indices": [0, 1]}
    for patch, names, rows in ((2, ("p0", "p1"), 66), (4, ("p2", "p3"), 16), (8, ("p4", "p5"), 4)):
        model = make(**arguments, patch_size=patch)
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 64, 64))[0].shape[2] == rows
        assert model.config.feature_names == names


@pytest.mark.parametrize(
    ("arguments", "size", "stage"),
    [
        ({"downsample_version": "v2"}, (64, 64), None),
        ({"downsample_version": "v2"}, (64, 12), 2),
        ({"downsample_version": "v2", "out_indices": [0, 1]}, (64, 12), None),
        ({"downsample_version": "v3"}, (4, 4), None),
        ({"downsample_version": "v1", "norm_layer": "ln"}, (4, 4), None),
        ({"downsample_version": "v1", "norm_layer": "ln"}, (3, 64), 0),
        ({"downsample_version": "v3", "patchembed_version": "v2", "patch_size": 8}, (2, 64), 0),
        ({"downsample_version": "v1"}, (36, 64), "odd"),
    ],
)
def test_an_image_too_small_for_a_stage_is_refused_where_the_model_would_crash(arguments, size, stage):
    model = make(**{**TINY, "depths": [1, 1, 1], **arguments}, imgsize=size)
    with torch.no_grad():
        if stage is None:
            model.config.check_image()
            model(torch.zeros(1, 3, *size))
            return
        with pytest.raises(ModelError, match="wrong axes of an odd" if stage == "odd" else f"stage {stage}"):
            model.config.check_image()
        with pytest.raises((ModelError, RuntimeError)):
            model(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("norm", ["ln2d", "bn"])
def test_odd_maps_with_a_downsample_that_pads_wrongly_are_refused(norm):
    model = make(**{**TINY, "norm_layer": norm}, downsample_version="v1")
    with pytest.raises(ModelError, match="wrong axes"):
        model(torch.zeros(1, 3, 36, 36))


def test_what_v0_ignores_is_said():
    arguments, *_ = OPTIONS["v0_ignores"]
    notes = VmambaConfig(**read_vmamba_arguments(arguments, "test").values).notes
    assert [note.split(" ")[0] for note in notes] == ["ssm_act_layer", "ssm_conv", "ssm_conv_bias"]
    assert not VmambaConfig(**read_vmamba_arguments(V0, "test").values).notes


def test_the_walks_of_each_scan():
    assert ForwardType.parse("v05_noz").directions == (1, 1, -1, -1)
    assert ForwardType.parse("v05_noz").column_major == (0, 1, 0, 1)
    assert ForwardType.parse("v051d").directions == (1, 1, 1, 1)
    assert ForwardType.parse("v052d_noz").column_major == (0, 0, 0, 0)


def test_a_config_survives_the_way_through_official_arguments():
    for arguments, *_ in OPTIONS.values():
        config = VmambaConfig(**read_vmamba_arguments(arguments, "test").values)
        again = VmambaConfig(**read_vmamba_arguments(json.loads(json.dumps(config.official())), "test").values)
        assert again == config


@pytest.mark.parametrize("init", ["v0", "v1", "v2"])
def test_fresh_models_are_finite(init):
    torch.manual_seed(0)
    model = make_vmamba(VmambaConfig(**read_vmamba_arguments({**TINY, "ssm_init": init}, "test").values)).eval()
    assert isinstance(model, VSSM)
    assert set(trained_like(model)) == set(model.state_dict())
    with torch.no_grad():
        assert model(torch.from_numpy(image("fresh", (1, 3, 32, 32)))).isfinite().all()
