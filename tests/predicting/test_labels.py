"""True classes are found where a user keeps them, and accuracy is what scikit-learn calculates."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, precision_score, recall_score, top_k_accuracy_score

from vimdeploy.errors import UsageError
from vimdeploy.predicting.items import Item
from vimdeploy.predicting.labels import Accuracy, Truths
from vimdeploy.predicting.rows import Prediction, best_classes, rank_of

CLASSES = ("cat", "dog", "owl", "newt", "crow", "hare", "mole")


def truth(option: str, key: str, label: str | None = None, sources: tuple[str, ...] = ()) -> int | None:
    return Truths(option, CLASSES, sources)(Item(key, bytes, label))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9999)), min_size=1, max_size=40))
def test_accuracy_agrees_with_scikit_learn(drawn):
    truths = np.array([t for t, _ in drawn])
    logits = np.stack([np.random.default_rng(seed).standard_normal(7) for _, seed in drawn]).astype(np.float32)
    found = Accuracy(CLASSES)
    for row, index in zip(logits, truths, strict=True):
        found.add(Prediction("x", best_classes(row, CLASSES, 1), truth=int(index), truth_rank=rank_of(row, int(index))))
    guesses = logits.argmax(1)
    facts = found.to_dict()
    assert facts["top1"] == pytest.approx(np.mean(guesses == truths))
    expected = top_k_accuracy_score(truths, logits, k=5, labels=range(7))
    assert facts["top5"] == pytest.approx(expected)
    matrix = np.zeros((7, 7), int)
    for cell in facts["confusion"]:
        matrix[cell["truth"], cell["predicted"]] = cell["images"]
    np.testing.assert_array_equal(matrix, confusion_matrix(truths, guesses, labels=range(7)))
    recalls = recall_score(truths, guesses, labels=range(7), average=None, zero_division=0)
    precisions = precision_score(truths, guesses, labels=range(7), average=None, zero_division=0)
    for entry in facts["per_class"]:
        assert (entry["recall"] or 0) == pytest.approx(recalls[entry["index"]])
        assert (entry["precision"] or 0) == pytest.approx(precisions[entry["index"]])


def test_images_without_label_and_bad_images_count_nowhere_and_are_told():
    found = Accuracy(CLASSES)
    found.add(Prediction("a", best_classes(np.eye(7, dtype=np.float32)[2], CLASSES, 1), truth=2, truth_rank=0))
    found.add(Prediction("b", best_classes(np.eye(7, dtype=np.float32)[2], CLASSES, 1)))
    found.add(Prediction("c", error="bad", truth=1))
    facts = found.to_dict()
    assert (facts["images"], facts["top1"], facts["unlabelled"], facts["failed"]) == (1, 1.0, 1, 1)
    assert Accuracy(CLASSES).to_dict()["top1"] is None


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=9))
def test_the_rank_of_a_class_is_its_place_among_the_best(values):
    logits = np.array(values, np.float32)
    names = tuple(map(str, range(len(values))))
    order = [score.index for score in best_classes(logits, names, len(values))]
    assert [rank_of(logits, index) for index in order] == list(range(len(values)))


def test_folders_are_classes_by_name_or_number(tmp_path):
    assert truth("folders", "photos/owl/1.png") == 2
    assert truth("folders", "photos/3/1.png") == 3
    assert truth("folders", "photos/77/1.png") is None
    assert truth("source", "shard.tar/1.png", "dog") == 1
    assert truth("source", "shard.tar/1.png") is None


def test_folders_with_other_names_count_in_sorted_order_and_say_so(tmp_path):
    for index in range(7):
        (tmp_path / f"n{index:08d}").mkdir()
    truths = Truths("folders", CLASSES, [str(tmp_path)])
    assert truths(Item(f"{tmp_path}/n00000004/x.png", bytes)) == 4
    assert "sorted order" in truths.note
    (tmp_path / "n9").mkdir()
    with pytest.raises(UsageError, match="8 of 8 folders"):
        Truths("folders", CLASSES, [str(tmp_path)])


@pytest.mark.parametrize("kind", ["csv", "tsv", "json"])
def test_a_file_of_labels_is_read_by_path_or_name(tmp_path, kind):
    labels = {"photos/a.png": "dog", "b.png": "5"}
    mark = "\t" if kind == "tsv" else ","
    lines = "".join(f"{image}{mark}{label}\n" for image, label in labels.items())
    path = tmp_path / f"labels.{kind}"
    path.write_text(json.dumps(labels) if kind == "json" else f"image{mark}label\n{lines}")
    assert truth(str(path), "photos/a.png") == 1
    assert truth(str(path), "anywhere/b.png") == 5
    assert truth(str(path), "c.png") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("image,label\na.png,unicorn\n", "no class 'unicorn'"),
        ("name,class\na.png,dog\n", "no list of labels"),
        ("image,label\na.png,-1\n", "no class '-1'"),
        ("\xff\xfe", "no list of labels"),
    ],
)
def test_a_file_of_labels_that_makes_no_sense_is_refused(tmp_path, content, words):
    (tmp_path / "labels.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=words):
        truth(str(tmp_path / "labels.csv"), "a.png")
    with pytest.raises(UsageError, match="no such file"):
        truth(str(tmp_path / "missing.csv"), "a.png")
