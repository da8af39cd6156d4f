"""Checkpoints that are well-formed and still not what the reader can take."""

import pytest
import torch

from vimdeploy.errors import CheckpointError
from vimdeploy.models.checkpoint.reading import read_checkpoint


def test_a_newer_pickle_protocol_is_named_with_the_remedy(tmp_path):
    path = tmp_path / "new.pth"
    torch.save({"head.weight": torch.ones(2, 2)}, path, pickle_protocol=4)
    with pytest.raises(CheckpointError, match=r"protocol.*\n.*torch\.save"):
        read_checkpoint(path)


def test_sparse_weights_are_named(tmp_path):
    path = tmp_path / "sparse.pth"
    torch.save({"head.weight": torch.eye(3).to_sparse()}, path)
    with pytest.raises(CheckpointError, match=r"head\.weight is sparse"):
        read_checkpoint(path)


def test_a_path_too_long_for_the_file_system_is_an_error_in_words(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(tmp_path / ("a" * 5000))
