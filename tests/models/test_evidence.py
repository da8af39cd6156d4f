"""What a checkpoint's model is where shapes cannot tell: evidence has an order, contradictions name both sides, and a
guess that parity cannot check is said loudly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import vmamba_cases
from test_recognise import TINY, checkpoint, released, small

from vimdeploy.artifacts.recipe import find_recipe, recipes
from vimdeploy.errors import CheckpointError, UsageError
from vimdeploy.models import registry
from vimdeploy.models.checkpoint.reading import Checkpoint
from vimdeploy.models.evidence import FILE_NAME, GUESS, MODEL_ARGS, OWN, RELEASED
from vimdeploy.models.load import load_model
from vimdeploy.models.vim.config import VimConfig

OFFICIAL_TINY = find_recipe(TINY).official_name
STRIDE8 = find_recipe("vim_tiny_patch16_stride8_224").official_name


def recognise(found, recipe=None, *, dense=False, prefix=None, **model_args):
    return registry.recognise(found, model_args, recipe, dense=dense, prefix=prefix)[1]


def named(name, found):
    return Checkpoint(Path(name), "", found.state, "model", found.arguments, ())


def guesses(found):
    return [note for note in found.notes if note.startswith(GUESS)]


def of(patches_side, **options):
    return small(img_size=(16 * patches_side, 16 * patches_side), **options)


TINY_AT_27 = VimConfig(**{**vars(released(TINY)), "img_size": (432, 432), "num_classes": 10})
SIZES = {
    "stride 8, as released": (TINY_AT_27, {}, {}, 224, 8, RELEASED),
    "stride 8, by the arguments' model": (TINY_AT_27, {"model": STRIDE8}, {}, 224, 8, RELEASED),
    "stride 8, by the arguments' size": (TINY_AT_27, {"input_size": 224}, {}, 224, 8, OWN),
    "stride 16, by the arguments' size": (TINY_AT_27, {"input_size": 432}, {}, 432, 16, OWN),
    "timm's triple of sizes": (TINY_AT_27, {"input_size": (3, 432, 432)}, {}, 432, 16, OWN),
    "stride 16, by the user": (TINY_AT_27, {}, {"img_size": 432, "stride": 16}, 432, 16, MODEL_ARGS),
    "stride 16, by the user against the arguments": (
        TINY_AT_27,
        {"input_size": 224},
        {"img_size": 432, "stride": 16},
        432,
        16,
        MODEL_ARGS,
    ),
    "an unreleased size": (of(24), {}, {}, 384, 16, "taken as a square"),
    "an unreleased size at stride 8": (of(47), {"input_size": 384}, {}, 384, 8, OWN),
    "other classes are no evidence": (
        VimConfig(**{**vars(released(TINY)), "num_classes": 3}),
        {},
        {},
        224,
        16,
        RELEASED,
    ),
}


@pytest.mark.parametrize("kind", SIZES)
def test_size_and_stride_come_from_the_best_evidence(kind):
    config, arguments, given, size, stride, source = SIZES[kind]
    found = recognise(checkpoint(config, arguments=arguments), **given)
    assert (found.config.img_size, found.config.stride) == ((size, size), stride)
    assert source in found.sources["img_size"]


@pytest.mark.parametrize(("side", "other"), [(27, "stride 16"), (31, "stride 8"), (47, "stride 8")])
def test_where_two_readings_fit_both_are_said_with_the_arguments_for_the_other(side, other):
    config = TINY_AT_27 if side == 27 else of(side)
    (note,) = [note for note in guesses(recognise(checkpoint(config))) if "patches are read" in note]
    assert other in note.partition("fits as well")[0]
    assert "--model-args" in note


@pytest.mark.parametrize("side", [14, 24, 32])
def test_where_one_reading_fits_nothing_is_said_of_sizes(side):
    assert not [note for note in guesses(recognise(checkpoint(of(side)))) if "patches are read" in note]


def test_the_file_name_can_tell_the_stride():
    found = recognise(named("my_vim_stride8.pth", checkpoint(of(31))))
    assert (found.config.img_size, found.config.stride, found.sources["stride"]) == ((256, 256), 8, FILE_NAME)


CONTRADICTIONS = {
    "input_size that no stride explains": (
        checkpoint(of(24), arguments={"input_size": 224}),
        None,
        ("training arguments says img_size = 224 x 224", "576"),
    ),
    "classes of another run": (checkpoint(arguments={"nb_classes": 1000}), None, ("1000 classes", "head has 7")),
    "recipe and arguments": (
        checkpoint(VimConfig(**{**vars(released(TINY)), "num_classes": 5}), arguments={"model": OFFICIAL_TINY}),
        "videomamba_tiny_224",
        ("recipe videomamba_tiny_224 says", "training arguments says"),
    ),
    "file name and arguments": (
        named("videomamba_t16_in1k_res224.pth", checkpoint(released(TINY), arguments={"model": OFFICIAL_TINY})),
        None,
        ("training arguments says", "the file's name says"),
    ),
    "file name and recipe": (
        named("vim_t_midclstok_76p1acc.pth", checkpoint(released(TINY))),
        "videomamba_tiny_224",
        ("recipe videomamba_tiny_224 says", "the file's name says true"),
    ),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_a_contradiction_is_refused_and_names_both_sides(kind):
    found, recipe, words = CONTRADICTIONS[kind]
    with pytest.raises(UsageError) as caught:
        recognise(found, recipes()[recipe] if recipe else None)
    for word in words:
        assert word in caught.value.message
    assert caught.value.hint


def test_the_user_settles_a_contradiction():
    found = CONTRADICTIONS["file name and arguments"][0]
    config = recognise(found, use_middle_cls_token=False, if_divide_out=False, final_pool_type="mean").config
    assert (config.use_middle_cls_token, config.if_divide_out) == (False, False)


RELATIVES = {
    "a Vim by its arguments": ("model.pth", {"model": OFFICIAL_TINY}, None, True, OWN, False),
    "a VideoMamba by its arguments": ("model.pth", {"model": "videomamba_tiny"}, None, False, OWN, False),
    "a VideoMamba by its published name": ("videomamba_t16_in1k_res224.pth", {}, None, False, FILE_NAME, False),
    "a VideoMamba by any name": ("my_videomamba_best.pth", {}, None, False, FILE_NAME, False),
    "a Vim by its published name": ("vim_t_midclstok_76p1acc.pth", {}, None, True, FILE_NAME, False),
    "a VideoMamba by the user": ("model.pth", {}, "videomamba_tiny_224", False, "recipe videomamba_tiny_224", False),
    "anything by shapes alone, loudly": ("model.pth", {}, None, True, RELEASED, True),
}


@pytest.mark.parametrize("kind", RELATIVES)
def test_models_of_the_same_shapes_are_told_apart(kind):
    name, arguments, recipe, middle, source, loud = RELATIVES[kind]
    found = recognise(
        named(name, checkpoint(released(TINY), arguments=arguments)), recipes()[recipe] if recipe else None
    )
    assert (found.config.use_middle_cls_token, found.config.if_divide_out) == (middle, middle)
    assert found.sources["use_middle_cls_token"].startswith(source)
    assert bool(guesses(found)) == loud
    assert found.recipe is recipes()[TINY if middle else "videomamba_tiny_224"]


def test_a_guess_names_every_value_and_where_it_came_from():
    (note,) = guesses(recognise(checkpoint(released(TINY))))
    for word in ("if_divide_out = true", "use_middle_cls_token = true", RELEASED, "--model-args"):
        assert word in note
    (note,) = guesses(recognise(checkpoint(small(if_cls_token=False))))
    assert "final_pool_type = mean" in note


def test_a_fine_tuned_checkpoint_keeps_its_recipes_preprocessing(tmp_path):
    """Other classes and another size, a crop ratio of its own: no mean and no deviation is assumed."""
    import argparse

    from vimdeploy.models.registry import build

    config = VimConfig(**{**vars(released("vim_digits")), "num_classes": 4, "img_size": (64, 64)})
    args = argparse.Namespace(model="vim_digits", input_size=64, nb_classes=4, eval_crop_ratio=1.0)
    torch.save({"model": build(config).state_dict(), "args": args}, tmp_path / "tuned.pth")
    loaded = load_model(tmp_path / "tuned.pth")
    wanted = recipes()["vim_digits"].input
    assert (loaded.input.mean, loaded.input.std) == (wanted.mean, wanted.std)
    assert (loaded.input.size, loaded.input.crop_ratio) == ((64, 64), 1.0)
    assert not [note for note in loaded.notes if note.startswith(GUESS)]


# ---- where the model is


STATE = checkpoint(small()).state
HEADLESS = {k: v for k, v in checkpoint(small(if_cls_token=False, num_classes=0)).state.items() if "head" not in k}
HEAD = {"decode_head.conv.weight": torch.ones(1)}


def under(prefix, state, **beside):
    return Checkpoint(Path("model.pth"), "", {**{prefix + k: v for k, v in state.items()}, **beside}, "model", {}, ())


PLACES = {
    **{
        f"a classifier under '{prefix}'": (under(prefix, STATE), False)
        for prefix in ("model.", "net.", "student.", "module.model.", "backbone.", "a.b.c.", "encoder.")
    },
    "a classifier under 'backbone.' beside others": (under("backbone.", STATE, **HEAD), False),
    "a classifier beside its average's counter": (under("module.", STATE, n_averaged=torch.tensor(3)), False),
    "a classifier with thop's counts": (
        under("", STATE, total_ops=torch.ones(1), **{"layers.0.mixer.total_ops": torch.ones(1)}),
        False,
    ),
    "a classifier with its criterion": (under("", STATE, **{"criterion.weight": torch.ones(2)}), False),
    "a headless model under 'module.'": (under("net.", HEADLESS), False),
    **{
        f"a backbone under '{prefix}'": (under(prefix, HEADLESS, **HEAD), True)
        for prefix in ("backbone.", "encoder.", "model.backbone.", "backbone.net.", "trunk.")
    },
    "a backbone alone": (under("backbone.", HEADLESS), True),
}


@pytest.mark.parametrize("kind", PLACES)
def test_the_model_is_found_wherever_it_is(kind):
    found, is_backbone = PLACES[kind]
    recognised = recognise(found)
    assert recognised.config.is_backbone == is_backbone
    assert recognised.config.embed_dim == 32


def test_of_several_models_the_user_names_one():
    both = under("student.", STATE, **{"teacher." + k: v for k, v in checkpoint(small(depth=3)).state.items()})
    with pytest.raises(UsageError, match=r"several models, under 'student\.', 'teacher\.'") as caught:
        recognise(both)
    assert "--prefix" in caught.value.hint
    assert recognise(both, prefix="teacher").config.depth == 3
    with pytest.raises(UsageError, match="no model under --prefix nobody"):
        recognise(both, prefix="nobody")


STRANGERS = {
    "VideoMamba for video": "temporal_pos_embedding",
    "MedMamba": "layers.0.blocks.0.conv33conv33conv11.0.weight",
    "VM-UNet": "vmunet.layers_up.0.blocks.0.self_attention.A_logs",
    "MambaVision": "levels.2.blocks.0.mixer.A_log",
    "LocalVim or LocalVMamba": "layers.0.mixer.multi_scan.weights",
    "EfficientVMamba": "layers.0.blocks.0.conv_branch.0.weight",
    "Mamba language model": "backbone.embedding.weight",
    "Swin Transformer": "layers.0.blocks.0.attn.relative_position_bias_table",
}


@pytest.mark.parametrize("title", STRANGERS)
def test_a_relative_that_is_not_supported_is_called_by_its_name(title):
    with pytest.raises(CheckpointError, match=f"holds a {title}") as caught:
        recognise(under("", {**STATE, STRANGERS[title]: torch.ones(1)}))
    assert "export_module" in caught.value.hint


def test_a_vmamba_without_norms_of_its_maps_becomes_a_backbone_by_the_users_word_alone():
    model, _ = vmamba_cases.golden("vmamba_v05")
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("classifier.")}
    with pytest.raises(UsageError, match="no norms of the feature maps") as caught:
        recognise(under("backbone.", state, **HEAD))
    assert "--task dense" in caught.value.hint
    assert recognise(under("backbone.", state, **HEAD), dense=True).config.is_backbone
