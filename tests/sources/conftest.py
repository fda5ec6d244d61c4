"""Fixtures of the tests of sources."""

from pathlib import Path

import pytest

NAMES = [
    "a.jpg",
    "B.JPG",
    "no-ending",
    ".hidden",
    "two words",
    "#",
    "100%",
    "%20",
    "ünï.png",
    "new\nline",
    "bell\x07",
    "st*r",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder tree of several levels with unusual names."""
    for folder in ("", "sub", "sub/deep er", ".dot"):
        (tmp_path / "images" / folder).mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            (tmp_path / "images" / folder / name).write_bytes(name.encode())
    return tmp_path / "images"
