import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from goldens import DATA, NAMES, golden, write_checkpoint

from vimdeploy.artifacts.recipe import find_recipe, read_recipe, recipe_folder, recipes
from vimdeploy.cli.options import parse_model_args
from vimdeploy.errors import CheckpointError, ModelError, UsageError
from vimdeploy.models import registry as families
from vimdeploy.models.checkpoint.reading import Checkpoint
from vimdeploy.models.evidence import MODEL_ARGS, OFFICIAL, RELEASED, SHAPES, summarise_keys
from vimdeploy.models.load import ModelRequest, load_model
from vimdeploy.models.vim.config import VimConfig, read_official_arguments
from vimdeploy.models.vim.model import VisionMamba

TINY = "vim_tiny_patch16_224"
VIMS = [recipe.name for recipe in recipes().values() if recipe.family == "vim"]
RELATIVES = ("videomamba_tiny_224", "videomamba_small_224")
"""Models whose every shape is a Vim's too."""
OWN = "the checkpoint's training arguments"
UNTOLD = {
    "bidirectional_v2": {"if_bidirectional": True},
    "cls_head": {"use_middle_cls_token": False},
    "cls_rect": {"img_size": [48, 80]},
    "cls_stride8": {"img_size": 32, "stride": 8},
    "no_divide": {"if_divide_out": False},
}
"""What the shapes of a golden cannot tell."""


def checkpoint(config=None, *, arguments=None, **options):
    with torch.device("meta"):
        state = VisionMamba(config or small(**options)).state_dict()
    return Checkpoint(Path("some/model.pth"), "", state, "model", arguments or {}, ())


def small(**options):
    return VimConfig(**({"img_size": (64, 64), "embed_dim": 32, "depth": 2, "num_classes": 7} | options))


def released(name):
    return VimConfig(**read_official_arguments(recipes()[name].model, name).values)


def recognise(found, recipe=None, **model_args):
    return families.recognise(found, model_args, recipe, dense=False)[1]


def write_recipe(folder, name="mine", **model):
    """Write a recipe for the small model; what is passed replaces or adds model arguments."""
    values = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_classes": 7, **model}
    lines = [f"name = '{name}'", "title = 'Mine'", "family = 'vim'", "parameters = 1", "[model]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    lines += ["[input]", "size = [64, 64]", "[classes]", "count = 7"]
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_the_untold_arguments_give_back_the_configuration(name):
    case = golden(name)
    found = recognise(checkpoint(case.config), **UNTOLD.get(name, {}))
    differing = {f.name for f in fields(VimConfig) if getattr(found.config, f.name) != getattr(case.config, f.name)}
    assert differing <= {"init_layer_scale"}  # the constructor's value is overwritten by the trained gamma
    assert (found.config.init_layer_scale is None) == (case.config.init_layer_scale is None)


@pytest.mark.parametrize("name", [name for name in VIMS if name not in RELATIVES])
def test_every_released_model_is_recognised_from_shapes_alone(name):
    found = recognise(checkpoint(released(name)))
    assert found.config == released(name)
    assert found.recipe == recipes()[name]


@pytest.mark.parametrize(
    ("options", "decided"),
    [
        ({"embed_dim": 48}, "embed_dim"),
        ({"depth": 3}, "depth"),
        ({"d_state": 8}, "d_state"),
        ({"channels": 1}, "channels"),
        ({"num_classes": 0}, "num_classes"),
        ({"patch_size": (8, 8), "stride": 8}, "patch_size"),
        ({"rms_norm": False}, "rms_norm"),
        ({"if_abs_pos_embed": False}, "if_abs_pos_embed"),
        ({"if_rope": True}, "if_rope"),
        ({"if_cls_token": False}, "if_cls_token"),
        ({"use_double_cls_token": True}, "use_double_cls_token"),
        ({"bimamba_type": "none"}, "bimamba_type"),
        ({"bimamba_type": "v1"}, "bimamba_type"),
        ({"d_conv": 3}, "d_conv"),
        ({"expand": 1.5}, "expand"),
        ({"expand": 1.3}, "d_inner"),
        ({"dt_rank": 5}, "dt_rank"),
        ({"conv_bias": False}, "conv_bias"),
        ({"bias": True}, "bias"),
    ],
)
def test_what_shapes_can_tell_is_told_by_shapes(options, decided):
    config = small(**options)
    found = recognise(checkpoint(config))
    assert getattr(found.config, decided) == getattr(config, decided)
    assert found.sources.get(decided, SHAPES) == SHAPES


def test_every_value_says_where_it_came_from():
    sources = recognise(checkpoint(), if_divide_out=False).sources
    assert sources.keys() == {f.name for f in fields(VimConfig)}
    assert sources["if_divide_out"] == MODEL_ARGS
    assert sources["embed_dim"] == SHAPES
    assert sources["final_pool_type"] == RELEASED
    assert sources["norm_epsilon"] == OFFICIAL


def test_model_args_come_before_the_recipe_the_training_arguments_and_the_released_default(tmp_path):
    name = find_recipe(TINY).official_name
    own = checkpoint(released(TINY), arguments={"model": name, "input_size": 224})
    values = recipes()[TINY].model | {"final_pool_type": "none"}
    recipe = read_recipe(write_recipe(tmp_path, **values))

    def told(found):
        return found.config.final_pool_type, found.sources["final_pool_type"]

    assert told(recognise(own, recipe, final_pool_type="all")) == ("all", MODEL_ARGS)
    with pytest.raises(UsageError, match=f"recipe mine says final_pool_type = none, {OWN} says mean"):
        recognise(own, recipe)
    assert told(recognise(own)) == ("mean", OWN)
    assert told(recognise(checkpoint(released(TINY)))) == ("mean", f"{RELEASED} (Vim-Ti)")
    assert told(recognise(checkpoint())) == ("mean", RELEASED)


def test_the_training_arguments_never_override_a_shape():
    found = recognise(checkpoint(arguments={"model": find_recipe(TINY).official_name}))
    assert (found.config.embed_dim, found.config.depth, found.config.img_size) == (32, 2, (64, 64))


def test_the_input_size_a_checkpoint_was_trained_with_gives_the_stride():
    found = recognise(checkpoint(small(stride=8, img_size=(32, 32)), arguments={"input_size": 32}), stride=8)
    assert (found.config.img_size, found.config.stride) == ((32, 32), 8)


def test_a_model_name_that_is_no_released_model_is_noted():
    assert "my_vim" in recognise(checkpoint(arguments={"model": "my_vim"})).notes[0]


@pytest.mark.parametrize(
    ("arguments", "said", "held"),
    [
        ({"embed_dim": 48}, "embed_dim = 48", "32"),
        ({"depth": 3}, "depth = 3", "2"),
        ({"num_classes": 1000}, "num_classes = 1000", "7"),
        ({"bimamba_type": "v1"}, "bimamba_type = v1", "v2"),
        ({"rms_norm": False}, "rms_norm = false", "true"),
        ({"patch_size": 8}, "patch_size = 8 x 8", "16 x 16"),
        ({"d_state": 8}, "d_state = 8", "16"),
        ({"if_cls_token": False}, "if_cls_token = false", "true"),
        ({"use_double_cls_token": True}, "use_double_cls_token = true", "false"),
        ({"init_layer_scale": 0.1}, "init_layer_scale = 0.1", "none"),
        ({"ssm_cfg": {"expand": 3}}, "expand = 3", "2"),
        ({"ssm_cfg": {"dt_rank": 9}}, "dt_rank = 9", "2"),
        ({"img_size": 224}, "img_size = 224 x 224", "16"),
        ({"img_size": 64, "stride": 8}, "img_size = 64 x 64", "16"),
    ],
)
def test_an_argument_that_the_weights_contradict_is_refused_with_both_values(arguments, said, held):
    with pytest.raises(UsageError) as caught:
        recognise(checkpoint(), **arguments)
    assert "some/model.pth" in caught.value.message
    assert said in caught.value.message
    assert held in caught.value.message.split(said)[1]


def test_a_stride_of_no_pixels_is_refused():
    with pytest.raises(UsageError, match="stride must be at least 1"):
        recognise(checkpoint(), stride=0)


def test_a_recipe_that_the_weights_contradict_is_refused():
    with pytest.raises(UsageError, match=f"recipe {TINY} says depth = 24, the checkpoint's weights say 2"):
        recognise(checkpoint(small(embed_dim=192)), recipes()[TINY])


def test_a_recipe_serves_a_model_fine_tuned_to_other_classes_and_another_size(tmp_path):
    config = VimConfig(**{**vars(released(TINY)), "num_classes": 10, "img_size": (96, 96)})
    found = recognise(checkpoint(config), recipes()[TINY])
    assert (found.config.num_classes, found.config.img_size) == (10, (96, 96))


def test_arguments_that_agree_with_the_weights_are_taken():
    arguments = {"embed_dim": 32, "depth": 2, "ssm_cfg": {"expand": 2.0, "dt_rank": "auto"}, "init_layer_scale": None}
    assert recognise(checkpoint(), **arguments).config == recognise(checkpoint()).config
    scaled = checkpoint(small(init_layer_scale=0.1))
    assert recognise(scaled, init_layer_scale=0.3).config.init_layer_scale is not None


def test_patches_that_form_no_square_need_the_image_size():
    found = checkpoint(small(img_size=(48, 80)))
    with pytest.raises(UsageError, match="15 patches do not form a square") as caught:
        recognise(found)
    assert "img_size" in caught.value.hint
    assert recognise(found, img_size=[48, 80]).config.img_size == (48, 80)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("if_devide", "if_divide_out"), ("final_pool", "final_pool_type"), ("if_bimambaa", "if_bimamba")],
)
def test_an_unknown_argument_suggests_the_nearest(name, nearest):
    with pytest.raises(UsageError) as caught:
        recognise(checkpoint(), **{name: 1})
    assert f"'{name}'" in caught.value.message
    assert nearest in caught.value.hint


def test_a_variant_the_official_code_crashes_on_is_refused_at_recognition():
    with pytest.raises(ModelError, match="one number per image"):
        recognise(checkpoint(), final_pool_type="max")


def test_another_architecture_is_refused_with_its_keys_grouped_and_at_most_ten():
    state = {f"blocks.{i}.part{j}.weight": torch.ones(1) for i in range(12) for j in range(30)}
    other = Checkpoint(Path("deit.pth"), "", state, "model", {}, ())
    with pytest.raises(CheckpointError) as caught:
        recognise(other)
    message = caught.value.message
    assert "deit.pth" in message
    assert "neither a Vision Mamba nor a VMamba" in message
    assert "blocks.*.part0.weight (12x)" in message
    assert message.count("(12x)") == 10
    assert "and 20 more" in message


def test_keys_are_summarised_by_kind():
    keys = [f"layers.{i}.a" for i in range(3)] + ["head.weight"]
    assert summarise_keys(keys) == "layers.*.a (3x), head.weight"
    assert summarise_keys([str(i) for i in range(12)]).endswith("9 and 2 more")


def test_missing_extra_and_misshapen_weights_are_named_in_groups(tmp_path):
    case = golden("cls_tiny")
    state = case.state()
    state["extra.weight"] = torch.ones(1)
    state["head.bias"] = torch.ones(3)
    del state["layers.1.mixer.out_proj.weight"], state["layers.2.mixer.out_proj.weight"]
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "odd.pth")
    message = caught.value.message
    assert "layers.*.mixer.out_proj.weight (2x)" in message
    assert "not in the model: extra.weight" in message
    assert "head.bias has shape (3,), the model (10,)" in message


@pytest.mark.parametrize("key", ["norm_f.weight", "layers.0.mixer.A_log", "cls_token", "layers.1.norm.weight"])
def test_a_checkpoint_without_one_of_its_weights_is_refused(tmp_path, key):
    state = golden("layernorm").state()
    del state[key]
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises((CheckpointError, UsageError)) as caught:
        load_model(tmp_path / "odd.pth")
    assert "odd.pth" in caught.value.message


@pytest.mark.parametrize("number", [3, 99_999_999_999])
def test_a_gap_between_the_layers_is_refused_before_a_model_is_built(number):
    found = checkpoint()
    found.state[f"layers.{number}.norm.weight"] = torch.ones(32)
    with pytest.raises(CheckpointError, match=r"model\.pth: layer 2 is missing"):
        recognise(found)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("layers.0.mixer.A_log", (64,)),
        ("patch_embed.proj.weight", (32,)),
        ("patch_embed.proj.weight", (0, 3, 16, 16)),
        ("pos_embed", (17, 32)),
        ("pos_embed", (1, 0, 32)),
    ],
)
def test_weights_of_a_shape_that_no_vim_has_are_refused_by_name(key, shape):
    found = checkpoint()
    found.state[key] = torch.ones(shape)
    with pytest.raises(CheckpointError, match=f"{key} has shape"):
        recognise(found)


# Recipes


@pytest.mark.parametrize("name", VIMS)
def test_recipes_state_the_parameters_and_keys_of_their_models(name):
    recipe = recipes()[name]
    with torch.device("meta"):
        model = VisionMamba(released(name))
    assert recipe.name == name == Path(name).stem
    assert recipe.parameters == sum(p.numel() for p in model.parameters())
    assert tuple(recipe.input.size) == model.config.img_size
    assert recipe.classes.count == model.config.num_classes == len(recipe.classes.labels())
    assert {r.official_name for r in recipes().values()} >= {recipe.official_name}


def test_the_five_released_models_have_recipes():
    files = {
        "keys_tiny": TINY,
        "keys_tiny_stride8": "vim_tiny_patch16_stride8_224",
        "keys_small": "vim_small_patch16_224",
    }
    files |= {"keys_small_stride8": "vim_small_patch16_stride8_224", "keys_base": "vim_base_patch16_224"}
    for file, name in files.items():
        first = (DATA / f"{file}.txt").read_text().splitlines()[0].removeprefix("#").strip()
        assert recipes()[name].official_name == first
        assert find_recipe(first) is recipes()[name]


def test_an_unknown_recipe_suggests_the_nearest():
    with pytest.raises(UsageError) as caught:
        find_recipe("vim_tiny_patch16_22")
    assert TINY in caught.value.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = ", "not a readable TOML file"),
        ("name = 'a'", "parameters: Field required; model: Field required"),
        ("name = 'a'", "title"),
        ("{text}\n[parity.fp32]\natoll = 1", "atoll"),
        ("{text}\n[precision]\nengine = 'fp8'", "precision.engine"),
    ],
)
def test_a_broken_recipe_is_refused_naming_file_and_field(tmp_path, text, words):
    good = (recipe_folder() / f"{TINY}.toml").read_text().split("[precision]")[0]
    path = tmp_path / "broken.toml"
    path.write_text(text.replace("{text}", good))
    with pytest.raises(UsageError) as caught:
        find_recipe(str(path))
    assert str(path) in caught.value.message
    assert words in caught.value.message


def test_a_recipe_extends_another_and_has_its_class_names_beside_it(tmp_path):
    (tmp_path / "pets.txt").write_text("cat\ndog")
    (tmp_path / "mine.toml").write_text(
        f"extends = '{TINY}'\nname = 'mine'\n[model]\nnum_classes = 2\n[input]\ncrop_ratio = 1.0\n"
        "[classes]\ncount = 2\nnames = 'pets'\n"
    )
    (tmp_path / "larger.toml").write_text("extends = 'mine.toml'\nname = 'larger'\n[input]\nsize = [384, 384]\n")
    recipe, base = find_recipe(str(tmp_path / "larger.toml")), recipes()[TINY]
    assert (recipe.name, recipe.input.size, recipe.input.crop_ratio) == ("larger", (384, 384), 1.0)
    assert recipe.model == {**base.model, "num_classes": 2}
    assert (recipe.parity, recipe.classes.labels()) == (base.parity, ("cat", "dog"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends = 'vim_tinny'", "there is no recipe 'vim_tinny'"),
        ("extends = 'circle.toml'", "in a circle"),
        ("extends = 'missing.toml'", "missing.toml: there is no such file"),
        ("extends = 3", "must be the name of a recipe"),
    ],
)
def test_what_cannot_be_extended_is_refused(tmp_path, text, words):
    (tmp_path / "circle.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_recipe(tmp_path / "circle.toml")


def test_a_missing_recipe_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.toml"):
        find_recipe(str(tmp_path / "nowhere.toml"))


# Model arguments and the way in


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (None, '{"if_divide_out": false, "ssm_cfg": {"d_conv": 4}}'),
        ("args.json", '{"if_divide_out": false, "ssm_cfg": {"d_conv": 4}}'),
        ("args.toml", "if_divide_out = false\n[ssm_cfg]\nd_conv = 4"),
    ],
)
def test_model_args_are_json_text_or_a_json_or_toml_file(tmp_path, name, content):
    text = content
    if name:
        (tmp_path / name).write_text(content)
        text = str(tmp_path / name)
    assert parse_model_args(text) == {"if_divide_out": False, "ssm_cfg": {"d_conv": 4}}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (None, "{if_divide_out: false}"),
        (None, "no/such/file.json"),
        (None, "if_divide_out=false"),
        ("args.json", "[1, 2]"),
        ("args.json", "{"),
        ("args.toml", "= 3"),
        ("args.json", b"\xff\xfe\x00"),
    ],
)
def test_model_args_that_cannot_be_read_are_refused(tmp_path, name, content):
    text = content
    if name:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        text = str(tmp_path / name)
    with pytest.raises(UsageError, match="args"):
        parse_model_args(text)


def test_loading_says_what_it_assumed_and_resizes_around_the_class_token(tmp_path):
    path = write_checkpoint(tmp_path, "cls_tiny")
    loaded = load_model(path, ModelRequest(img_size=(64, 96)))
    assert loaded.config.img_size == (64, 96)
    assert loaded.input.size == (64, 96)
    assert loaded.recognised.config.img_size == (64, 64)
    assert any("resized from 64 x 64 to 64 x 96" in note for note in loaded.notes)
    assert any("ImageNet" in note for note in loaded.notes)
    assert not loaded.model.training


def test_rotations_are_made_anew_for_another_image_size(tmp_path):
    loaded = load_model(write_checkpoint(tmp_path, "rope_midcls"), ModelRequest(img_size=(96, 96)))
    assert torch.equal(loaded.model.rope.freqs_cos, VisionMamba(loaded.config).rope.freqs_cos)
    assert loaded.model.rope.freqs_cos.shape[0] == 36


def test_a_size_too_small_for_one_patch_is_refused(tmp_path):
    with pytest.raises(ModelError, match="smaller than one patch"):
        load_model(write_checkpoint(tmp_path, "cls_tiny"), ModelRequest(img_size=(8, 8)))
