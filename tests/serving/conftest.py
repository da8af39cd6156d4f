from __future__ import annotations

from pathlib import Path

import pytest
from fleet import export_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained example, exported once for all tests here."""
    return export_digits(tmp_path_factory.mktemp("digits"))
