"""The recipes of CONTRIBUTING.md, followed to the letter on a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import PROJECT_ROOT

PAGE = PROJECT_ROOT / "CONTRIBUTING.md"
BLOCK = re.compile(r"^```python\n# (?P<target>[^\n]+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
RECIPES = [part for part in PAGE.read_text(encoding="utf-8").split("\n## ") if part.startswith("Add a ")]


def add_line(file: Path, dictionary: str, code: str) -> None:
    """Adds a block's import after the module's docstring, and its entry at the top of the dictionary."""
    imports, entry = code.split("\n\n")
    source = file.read_text(encoding="utf-8")
    source, docstrings = re.subn(r'\A("""[^"]*"""\n)', rf"\1{imports}\n", source)
    source, entries = re.subn(rf"^({dictionary}\b[^=]*= {{\n)", rf"\1{entry}", source, flags=re.MULTILINE)
    assert (docstrings, entries) == (1, 1), f"{file} has no dictionary {dictionary}"
    file.write_text(source, encoding="utf-8")


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.splitlines()[0] for recipe in RECIPES])
def test_a_recipe_works_as_it_is_written(recipe: str, tmp_path: Path) -> None:
    shutil.copytree(PROJECT_ROOT / "locray", tmp_path / "locray", ignore=shutil.ignore_patterns("__pycache__"))
    tried = 0
    for block in BLOCK.finditer(recipe):
        target, code = block["target"], block["code"]
        if target == "try it":
            environment = os.environ | {"PYTHONPATH": str(tmp_path)}
            command = [sys.executable, "-W", "error", "-c", code]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            tried += 1
        elif ", in " in target:
            file, dictionary = target.split(", in ")
            add_line(tmp_path / file, dictionary, code)
        else:
            assert not (tmp_path / target).exists(), f"{target} exists already"
            (tmp_path / target).write_text(code, encoding="utf-8")
    assert tried == 1


def test_all_recipes_are_there() -> None:
    assert [recipe.splitlines()[0] for recipe in RECIPES] == [
        "Add a source of images", "Add a format of annotations", "Add a model",
    ]  # fmt: skip
