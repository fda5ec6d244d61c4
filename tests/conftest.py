"""Fixtures that more than one folder of tests uses."""

import os
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, or a skip that says how to provide it."""
    folder = Path(os.environ.get("LOCRAY_TEST_DATA", PROJECT_ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real images not found at {folder}: set LOCRAY_TEST_DATA to their folder")
    return folder
