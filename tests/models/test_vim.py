import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from goldens import DATA, FULL, NAMES, TOLERANCE, golden

from vimdeploy.artifacts.recipe import recipes
from vimdeploy.errors import ModelError, UsageError, VimdeployError
from vimdeploy.models.family import fold
from vimdeploy.models.vim.config import VimConfig, read_official_arguments
from vimdeploy.models.vim.model import VisionMamba
from vimdeploy.models.vim.pos_embed import resize_pos_embed, resize_pos_embed_officially

SMALL = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_classes": 5, "rms_norm": True, "bimamba_type": "v2"}
RELEASED = {
    "vim_tiny_patch16_224": ("keys_tiny.txt", 7_148_008),
    "vim_tiny_patch16_stride8_224": ("keys_tiny_stride8.txt", 7_250_344),
    "vim_small_patch16_224": ("keys_small.txt", 25_796_584),
    "vim_small_patch16_stride8_224": ("keys_small_stride8.txt", 26_001_256),
    "vim_base_patch16_224": ("keys_base.txt", 97_598_440),
}


def config(**arguments):
    return VimConfig(**read_official_arguments(SMALL | arguments, "test").values)


def make(seed=0, **arguments):
    """Return a small model whose every weight is away from its initial symmetries."""
    torch.manual_seed(seed)
    model = VisionMamba(config(**arguments)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def images(batch=2, channels=3, size=32):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def run(model, *arguments):
    with torch.no_grad():
        return model(*(arguments or (images(),)))


def blocks_of(model, batch):
    """Return the output, and what entered and left every layer in the order of the calls."""
    seen = []
    hooks = [
        layer.register_forward_hook(lambda _m, inputs, output: seen.append((inputs[0], *output)))
        for layer in model.layers
    ]
    output = run(model, batch)
    for hook in hooks:
        hook.remove()
    return output, seen


def assert_equal(actual, expected):
    np.testing.assert_allclose(actual.numpy(), expected, **TOLERANCE, equal_nan=False)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_the_official_run_is_reproduced(name):
    case = golden(name)
    model = case.model()
    logits, seen = blocks_of(model, case.images)
    assert_equal(logits, case.arrays["logits"])
    with torch.no_grad():
        assert_equal(model.forward_features(case.images), case.arrays["features"])
    assert_equal(seen[0][0], case.arrays["block0_input"])
    assert len(seen) == len(case.arrays["block_hidden"])
    for i, (_, hidden, residual) in enumerate(seen):
        assert_equal(hidden, case.arrays["block_hidden"][i])
        assert_equal(residual, case.arrays["block_residual"][i])


@pytest.mark.parametrize("name", NAMES)
def test_the_folded_model_computes_the_same(name):
    case = golden(name)
    model = case.model()
    assert_equal(run(fold(model), case.images), case.arrays["logits"])
    assert_equal(run(model, case.images), case.arrays["logits"])  # and the original is left as it was


def test_the_real_vim_tiny_at_224_pixels_is_reproduced():
    case = golden(FULL)
    logits, seen = blocks_of(fold(case.model()), case.images)
    assert_equal(logits, case.arrays["logits"])
    hidden, residual = (np.stack([s[i][:, 98].numpy() for s in seen]) for i in (1, 2))
    np.testing.assert_allclose(hidden, case.arrays["block_hidden_cls"].reshape(hidden.shape), **TOLERANCE)
    np.testing.assert_allclose(residual, case.arrays["block_residual_cls"].reshape(residual.shape), **TOLERANCE)
    chosen = np.stack([seen[i][2].numpy() for i in (0, 11, 23)])
    np.testing.assert_allclose(chosen, case.arrays["block_residual_0_11_23"].reshape(chosen.shape), **TOLERANCE)


@pytest.mark.parametrize("name", RELEASED)
def test_keys_shapes_and_parameter_counts_are_those_of_the_released_models(name):
    keys, parameters = RELEASED[name]
    lines = (DATA / keys).read_text().splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    with torch.device("meta"):
        model = VisionMamba(VimConfig(**read_official_arguments(recipes()[name].model, name).values))
    state = model.state_dict()
    assert len(rows) == 415
    assert [(key, ",".join(map(str, v.shape)), str(v.dtype)) for key, v in state.items()] == [
        (key, shape, f"torch.{dtype}") for key, shape, dtype in rows
    ]
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("variant", [{}, {"bimamba_type": "v1"}, {"bimamba_type": "none"}, {"if_bidirectional": True}])
def test_every_parameter_gets_a_gradient_and_a_step_lowers_the_loss(variant):
    model = make(**variant).train()
    target = torch.tensor([1, 3])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss = torch.nn.functional.cross_entropy(model(images()), target)
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    optimizer.step()
    assert torch.nn.functional.cross_entropy(model(images()), target) < loss


def test_training_and_inference_compute_the_same():
    model = make()
    torch.testing.assert_close(model(images()).detach(), run(model))


RESIZED = np.load(DATA / "posembed_resize.npz")


@pytest.mark.parametrize(
    ("resize", "which"), [(resize_pos_embed, "midaware"), (resize_pos_embed_officially, "official")]
)
def test_position_embeddings_are_resized_in_both_ways(resize, which):
    case = golden("cls_tiny")
    state, old = case.state(), case.config
    new = replace(old, img_size=(96, 96))
    assert_equal(state["pos_embed"], RESIZED["pos_embed_64"])
    state["pos_embed"] = resize(state["pos_embed"], old, new)
    assert_equal(state["pos_embed"], RESIZED[f"pos_embed_96_{which}"])
    model = VisionMamba(new).eval()
    model.load_state_dict(state)
    inputs = torch.from_numpy(RESIZED["images_96"] if "images_96" in RESIZED else RESIZED["images"])
    assert_equal(run(model, inputs), RESIZED[f"logits_96_{which}"])


def test_resizing_keeps_both_class_tokens_at_the_ends():
    old, new = (config(img_size=s, use_double_cls_token=True) for s in (32, 64))
    rows = torch.randn(1, old.num_tokens, 16)
    resized = resize_pos_embed(rows, old, new)
    assert resized.shape == (1, new.num_tokens, 16)
    assert torch.equal(resized[:, [0, -1]], rows[:, [0, -1]])


def test_the_official_resize_refuses_what_the_official_code_cannot_do():
    old = config(img_size=[32, 64])
    with pytest.raises(ModelError, match="square"):
        resize_pos_embed_officially(torch.zeros(1, old.num_tokens, 16), old, config(img_size=64))


ROPE = {"if_rope": True, "img_size": 64}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"final_pool_type": "max"}, "one number per image"),
        ({"flip_img_sequences_ratio": 0.5}, "at random"),
        ({"flip_img_sequences_ratio": 1.0}, "at random"),
        ({"if_random_cls_token_position": True}, "random"),
        ({"if_random_token_rank": True}, "random"),
        ({"ssm_cfg": {"d_state": 8}}, "ssm_cfg"),
        ({**ROPE, "use_double_cls_token": True}, "two class tokens"),
        ({**ROPE, "stride": 8}, "stride 8"),
        ({**ROPE, "img_size": 48}, "odd number of patches"),
        ({**ROPE, "img_size": [32, 64]}, "not square"),
        ({**ROPE, "patch_size": [16, 32]}, "not square"),
        ({**ROPE, "embed_dim": 18}, "embed_dim"),
        ({"img_size": 8}, "smaller than one patch"),
    ],
)
def test_what_the_official_code_crashes_on_or_draws_at_random_is_refused_with_the_reason(arguments, words):
    with pytest.raises(ModelError, match=words):
        config(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"embed_dims": 16}, "embed_dim'"),
        ({"if_divide_outt": True}, "if_divide_out'"),
        ({"depth": "4"}, "depth must be a int"),
        ({"depth": True}, "depth"),
        ({"rms_norm": 1}, "rms_norm"),
        ({"img_size": 0}, "img_size"),
        ({"img_size": [32]}, "img_size"),
        ({"img_size": [32, -1]}, "img_size"),
        ({"final_pool_type": "men"}, "mean"),
        ({"bimamba_type": "v3"}, "v3"),
        ({"stride": 0}, "stride"),
        ({"ssm_cfg": 3}, "ssm_cfg"),
        ({"num_classes": -1}, "num_classes"),
        ({"norm_epsilon": 0.0}, "norm_epsilon"),
        ({"norm_epsilon": math.nan}, "norm_epsilon"),
    ],
)
def test_arguments_that_do_not_exist_or_fit_are_refused_by_name(arguments, words):
    with pytest.raises(UsageError) as caught:
        config(**arguments)
    assert words in str(caught.value)


def test_the_misspelt_argument_is_swallowed_as_the_official_code_does_and_noted():
    read = read_official_arguments(SMALL | {"if_devide_out": False}, "test")
    assert VimConfig(**read.values).if_divide_out
    assert "if_devide_out" in read.notes[0]


def test_if_bimamba_turns_v2_into_v1():
    assert config(if_bimamba=True).bimamba_type == "v1"
    assert config(if_bimamba=False).bimamba_type == "v2"


def test_arguments_that_change_nothing_at_inference_are_taken_silently():
    read = read_official_arguments(SMALL | {"drop_path_rate": 0.1, "pretrained": False, "ssm_cfg": None}, "test")
    assert VimConfig(**read.values) == config()
    assert read.notes == ()


def test_a_configuration_written_as_official_arguments_reads_back_the_same():
    once = config(ssm_cfg={"d_conv": 3, "expand": 1.5, "dt_rank": 2}, img_size=[32, 48], init_layer_scale=0.1)
    assert VimConfig(**read_official_arguments(once.official(), "test").values) == once


@pytest.mark.parametrize(("depth", "ratio"), [(2, 2.0), (3, 1.5)])
def test_a_flip_ratio_above_one_always_reverses_the_sequence_and_reads_the_same_index(depth, ratio):
    flipped = make(depth=depth, flip_img_sequences_ratio=ratio)
    plain = make(depth=depth)
    tokens = {}
    plain.layers[0].register_forward_pre_hook(lambda _m, inputs: (inputs[0].flip(1), *inputs[1:]))
    flipped.layers[0].register_forward_pre_hook(lambda _m, inputs: tokens.update(first=inputs[0]))
    torch.testing.assert_close(run(flipped), run(plain))
    torch.testing.assert_close(run(fold(flipped)), run(plain))
    assert not torch.allclose(run(flipped), run(make(depth=depth)))


def test_use_fast_path_false_runs_the_forward_branch_only():
    slow = make(ssm_cfg={"use_fast_path": False})
    before = run(slow)
    with torch.no_grad():
        for name, p in slow.named_parameters():
            if "_b" in name.split(".")[-1] or "_b." in name:
                p.add_(1)
    torch.testing.assert_close(run(slow), before)
    torch.testing.assert_close(run(fold(slow)), before)
    causal = make(bimamba_type="none")
    causal.load_state_dict({k: v for k, v in slow.state_dict().items() if k in causal.state_dict()})
    torch.testing.assert_close(run(causal), before)


def test_v1_ignores_if_divide_out_and_v2_does_not():
    assert torch.equal(run(make(bimamba_type="v1")), run(make(bimamba_type="v1", if_divide_out=False)))
    assert not torch.allclose(run(make()), run(make(if_divide_out=False)))


@pytest.mark.parametrize("folded", [False, True], ids=["plain", "folded"])
def test_an_odd_last_layer_of_if_bidirectional_never_runs(folded):
    model = make(depth=3, if_bidirectional=True)
    even = make(depth=2, if_bidirectional=True)
    even.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("layers.2.")})
    torch.testing.assert_close(run(fold(model) if folded else model), run(even))


VARIANTS = [
    {"ssm_cfg": {"d_conv": 2}},
    {"ssm_cfg": {"d_conv": 3}},
    {"ssm_cfg": {"d_conv": 1}},
    {"ssm_cfg": {"d_conv": 9}},  # longer than the sequence of five tokens
    {"ssm_cfg": {"bias": True}},
    {"ssm_cfg": {"conv_bias": False}},
    {"ssm_cfg": {"bias": True}, "init_layer_scale": 0.3},
    {"ssm_cfg": {"expand": 1.5}},
    {"ssm_cfg": {"expand": 1}},
    {"ssm_cfg": {"dt_rank": 3}},
    {"d_state": 5},
    {"channels": 1},
    {"num_classes": 0},
    {"depth": 0},
    {"depth": 1},
    {"if_abs_pos_embed": False},
    {"norm_epsilon": 1e-3},
    {"rms_norm": False, "fused_add_norm": False, "residual_in_fp32": False},
    {"if_cls_token": False, "final_pool_type": "none"},
    {"if_cls_token": False, "final_pool_type": "mean"},
    {"if_cls_token": False, "final_pool_type": "max"},
    {"if_cls_token": False, "final_pool_type": "all"},
    {"bimamba_type": "v1", "if_bidirectional": True},
    {"bimamba_type": "none", "if_bidirectional": True},
    {"if_bidirectional": True, "flip_img_sequences_ratio": 2.0},
    {"if_bidirectional": True, "if_rope": True, "img_size": 32, "if_cls_token": False},
    {"if_rope": True, "if_rope_residual": True},
    {"if_rope": True, "flip_img_sequences_ratio": 2.0},
    {"stride": 8, "patch_size": 16},
    {"patch_size": [8, 16], "stride": 8},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_variant_runs_and_computes_the_same_once_folded(variant):
    model = make(**variant)
    batch = images(channels=model.config.channels)
    plain = run(model, batch)
    torch.testing.assert_close(run(fold(model), batch), plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(batch).detach(), plain, atol=1e-5, rtol=1e-4)  # the path that autograd follows
    assert plain.isfinite().all()


@pytest.mark.parametrize(
    ("pool", "shape", "reduce"),
    [
        ("none", (2, 5), lambda logits: logits[:, -1]),
        ("max", (2, 5), lambda logits: logits.amax(1)),
        ("all", (2, 4, 5), lambda logits: logits),
    ],
)
def test_pools_without_a_class_token_reduce_the_logits_of_the_tokens(pool, shape, reduce):
    model = make(if_cls_token=False, final_pool_type=pool)
    with torch.no_grad():
        per_token = model.head(model.forward_tokens(images()))
    assert run(model).shape == shape
    torch.testing.assert_close(run(model), reduce(per_token))


def test_mean_pool_averages_the_normed_tokens_before_the_head():
    model = make(if_cls_token=False, final_pool_type="mean")
    with torch.no_grad():
        torch.testing.assert_close(run(model), model.head(model.forward_tokens(images()).mean(1)))


def test_a_pool_is_ignored_where_there_is_a_class_token():
    assert torch.equal(run(make(final_pool_type="none")), run(make(final_pool_type="all")))


def test_without_classes_the_logits_are_the_features():
    model = make(num_classes=0)
    with torch.no_grad():
        assert torch.equal(run(model), model.forward_features(images()))
    assert "head.weight" not in model.state_dict()


@pytest.mark.parametrize(("img_size", "patches", "position"), [(224, 196, 98), ([48, 80], 15, 7)])
def test_the_middle_class_token_sits_at_half_the_patches(img_size, patches, position):
    assert config(img_size=img_size).num_patches == patches
    assert config(img_size=img_size).class_tokens == (position,)
    assert config(img_size=img_size, use_middle_cls_token=False).class_tokens == (0,)
    assert config(img_size=img_size, use_double_cls_token=True).class_tokens == (0, patches + 1)


def test_stride_eight_at_224_pixels_makes_730_tokens():
    assert config(img_size=224, stride=8).num_tokens == 730


def test_dt_rank_auto_is_a_sixteenth_of_the_width_rounded_up():
    assert config(embed_dim=40, ssm_cfg={"dt_rank": "auto"}).dt_rank == math.ceil(40 / 16)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match="32"):
        run(make(), images(size=48))


def test_norms_are_computed_in_float32_in_a_half_precision_model():
    model = make()
    tokens = 300 * torch.ones(1, 2, 16, dtype=torch.float16)  # its square overflows float16
    assert model.norm_f(tokens).isfinite().all()


def test_refusals_are_errors_a_command_can_print():
    assert issubclass(ModelError, VimdeployError)
    assert ModelError.exit_code == 2
