import numpy as np
import pytest
import torch
from dense_cases import golden, make, options

from vimdeploy.errors import ModelError, UsageError
from vimdeploy.models.family import fold
from vimdeploy.models.vim.dense_config import VimDenseConfig, read_dense_arguments

OPTIONS = options()
SMALL = {"img_size": 64, "embed_dim": 16, "depth": 2, "out_indices": [0, 1], "kind": "seg"}


def assert_maps(actual, expected):
    assert len(actual) == len(expected)
    for mine, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), theirs, rtol=1e-4, atol=1e-4, equal_nan=False)


@pytest.mark.parametrize("folded", [False, True], ids=["plain", "folded"])
@pytest.mark.parametrize("name", ["seg_fpn", "det_rope"])
def test_feature_maps_equal_the_official_ones(name, folded):
    model, images, expected = golden(name)
    with torch.no_grad():
        assert_maps((fold(model) if folded else model)(images), expected)


@pytest.mark.parametrize("case", OPTIONS)
def test_every_option_equals_the_official_one(case):
    arguments, images, expected = OPTIONS[case]
    model = make(**arguments)
    assert len(model.config.feature_names) == len(set(model.config.feature_names)) == len(expected)
    with torch.no_grad():
        assert_maps(fold(model)(images), expected)


def test_keys_are_the_official_ones():
    seg, _, _ = golden("seg_fpn")
    det, _, _ = golden("det_rope")
    assert {"norm_f.weight", "fpn1.0.weight", "fpn1.1.running_var", "fpn1.3.bias", "fpn2.0.weight"} <= set(
        seg.state_dict()
    )
    assert not any(key.startswith(("head", "cls_token")) for key in seg.state_dict())
    assert not any(key.startswith(("head", "cls_token", "norm_f", "fpn")) for key in det.state_dict())
    assert det.state_dict()["rope.freqs_cos"].shape == (16, 64)


def test_outputs_are_named_by_stride_or_by_layer():
    names = {name: make(**arguments).config.feature_names for name, (arguments, *_) in OPTIONS.items()}
    assert names["fpn"] == names["patch8"] == names["fpn_of_one"] == ("p2", "p3", "p4", "p5")
    assert names["stride8_fpn"] == ("p1", "p2", "p3", "p4")
    assert names["plain_two"] == ("feat_1", "feat_3")
    assert names["det_add"] == ("last_feat",)
    assert names["unordered_repeated"] == ("feat_0", "feat_2", "feat_3")
    assert names["fpn_of_repeated"] == ("p2", "p3", "p4", "p5")


def test_an_order_that_the_official_code_does_not_keep_is_said():
    notes = make(**OPTIONS["unordered_repeated"][0]).config.notes
    assert "[0, 2, 3]" in notes[0]
    assert not make(**OPTIONS["fpn"][0]).config.notes


def test_images_need_not_be_square():
    model = make(**{**SMALL, "img_size": [32, 96]}, if_fpn=False)
    with torch.no_grad():
        maps = model(torch.arange(3 * 32 * 96).reshape(1, 3, 32, 96) / 9216.0)
        first = model.layers[0](
            model.patch_embed(torch.arange(3 * 32 * 96).reshape(1, 3, 32, 96) / 9216.0) + model.pos_embed, None
        )[0]
    assert [tuple(m.shape) for m in maps] == [(1, 16, 2, 6)] * 2
    torch.testing.assert_close(maps[0][0, :, 1, 2], first[0, 1 * 6 + 2])
    assert "square" in model.config.notes[0]


def test_a_class_token_in_the_arguments_leaves_no_trace():
    config = VimDenseConfig(**read_dense_arguments({**SMALL, "if_cls_token": True}, "test").values)
    assert config.num_tokens == config.num_patches == 16


def test_gradients_reach_every_parameter_of_the_features():
    model = make(**SMALL)
    sum(m.sum() for m in model(torch.zeros(2, 3, 64, 64))).backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    assert unused == {"norm_f.weight"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"out_indices": [1, 2]}, "skips others"),
        ({"out_indices": [-1]}, "skips others"),
        ({"out_indices": []}, "skips others"),
        ({"out_indices": [1, 0], "use_residual_as_feature": True}, "loses the feature of layer 1"),
        ({"if_bidirectional": True, "out_indices": [0, 1], "use_residual_as_feature": True}, "no features"),
        ({"if_bidirectional": True, "depth": 1, "kind": "det", "last_layer_process": "add"}, "no layer runs"),
        ({"if_bidirectional": True}, "no features"),
        ({"patch_size": 32, "stride": 32}, "no layers"),
        ({"img_size": 16, "out_indices": [1]}, "too few"),
        ({"depth": 5, "out_indices": [0, 1, 2, 3, 4]}, "four levels"),
        ({"if_abs_pos_embed": False}, "position embeddings"),
        ({"use_double_cls_token": True}, "double_cls_token"),
        ({"kind": "det", "last_layer_process": "add & norm"}, "deletes"),
        ({"if_rope": True, "img_size": [32, 64]}, "not square"),
        ({"if_rope": True, "img_size": 48}, "odd number"),
    ],
)
def test_what_the_official_code_cannot_run_is_refused(arguments, words):
    with pytest.raises(ModelError) as caught:
        VimDenseConfig(**read_dense_arguments({**SMALL, **arguments}, "test").values)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"last_layer_process": "add&norm"}, "add & norm"),
        ({"out_index": [0]}, "out_indices"),
        ({"out_indices": 3}, "list of integers"),
        ({"if_fpn": 1}, "must be a bool"),
        ({"kind": "segmentation"}, "'seg' or 'det'"),
    ],
)
def test_arguments_that_do_not_exist_are_named(arguments, words):
    with pytest.raises(UsageError) as caught:
        VimDenseConfig(**read_dense_arguments({**SMALL, **arguments}, "test").values)
    assert words in str(caught.value)


def test_a_config_survives_the_way_through_official_arguments():
    for arguments, *_ in OPTIONS.values():
        config = VimDenseConfig(**read_dense_arguments(arguments, "test").values)
        official = config.official()
        assert VimDenseConfig(**read_dense_arguments(official, "test").values) == config
