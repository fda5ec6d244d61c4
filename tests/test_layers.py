"""The rules of the source tree that no tool checks: who may import whom, and that nothing is named a second time.

Imports inside functions count. The rules hold for what is written down, so they are checked on the syntax tree.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from locray import schema
from locray.errors import ErrorCode

PACKAGE = Path(__file__).parents[1] / "locray"

LAYERS = {
    0: {"errors", "names", "schema", "boxes", "config", "progress", "signals"},
    1: {"storage", "model_files", "sources", "images", "datasets", "metrics"},
    2: {"models"},
    3: {"cluster", "training", "labelling", "evaluation"},
    4: {"benchmark", "demo", "report", "explain", "console", "commands", "cli"},
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}

NOT_BESIDE = {
    "storage": {"sources", "images", "datasets"},
    "images": {"sources", "datasets"},
    "sources": {"images", "datasets"},
    "datasets": {"images", "sources", "metrics"},
    "metrics": {"storage", "sources", "images", "datasets"},
    "labelling": {"training", "evaluation"},
    "training": {"labelling", "evaluation"},
    "evaluation": {"training"},
    "report": {"demo", "console", "commands", "cli"},
    "demo": {"console", "commands", "cli"},
}
"""What of its own layer a part may not import."""

FIRST_LAYER_WITH_TORCH = 2
MODULES_WITH_TORCH_BELOW = {"images.letterbox"}
"""The resizing of images: faster than Pillow's."""
MODULES_WITH_RAY = {"cluster", "training.loop", "labelling.pipeline"}
MODULES_BESIDE_US = "benchmark.peers."
"""Programs that locray is measured against: they show what other frameworks do, so they import them."""
MAX_LINES = 400

NAMES_OF_THEIR_OWN = {
    schema.IMAGE_URI,
    schema.SIZE_BYTES,
    schema.ERROR_CODE,
    schema.ERROR_MESSAGE,
    schema.MODEL_ID,
    schema.CONFIG_HASH,
    schema.RUN_ID,
    schema.RUN_DATE,
    schema.LABELLED_AT,
    schema.LABEL_ID,
}
"""Columns whose name means nothing else. The others are words of the language (`width`, `status`, `format`, ...) or
belong to a library as well (obstore's `last_modified`).
"""
CODES_OF_THEIR_OWN = {str(code) for code in ErrorCode if "_" in code}
"""Not `changed`, `truncated` and `corrupt`: the messages of libraries are searched for such words."""
MAY_NAME = {"errors", "schema"}


def module_of(path, package=PACKAGE):
    """`locray/images/decode.py` is `images.decode`; `locray/images/__init__.py` is `images`."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources_of_the_package():
    return {module_of(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


SOURCES = sources_of_the_package()
TOP_LEVEL = {module.split(".")[0] for module in SOURCES if module}


def imports_of(module, source):
    """The absolute names of all that a module imports, with the line: `locray.images.decode`, `torch.nn`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import; write it out"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found += [(arg.value, node.lineno) for arg in node.args if isinstance(arg, ast.Constant)]
    return found


def parts_of(module, source):
    """The parts of locray that a module imports, with the line."""
    names = [(name.split("."), line) for name, line in imports_of(module, source)]
    return [(name[1], line) for name, line in names if name[0] == "locray" and len(name) > 1 and name[1] in LAYER_OF]


def broken_layers(module, source):
    """Each import of locray that points up, or to a neighbour that is none of its business."""
    part = module.split(".")[0]
    return [
        f"{module}:{line} imports {other}"
        for other, line in parts_of(module, source)
        if other != part and (LAYER_OF[other] > LAYER_OF[part] or other in NOT_BESIDE.get(part, ()))
    ]


def misplaced_frameworks(module, source):
    """Each import of torch or ray where it has no place."""
    part = module.split(".")[0]
    found = []
    for name, line in imports_of(module, source):
        framework = name.split(".")[0]
        is_below = LAYER_OF[part] < FIRST_LAYER_WITH_TORCH and module not in MODULES_WITH_TORCH_BELOW
        if framework in {"torch", "torchvision"} and is_below:
            found.append(f"{module}:{line} imports {framework}")
        if framework == "ray" and module not in MODULES_WITH_RAY and not module.startswith(MODULES_BESIDE_US):
            found.append(f"{module}:{line} imports ray")
    return found


def literals_of(source):
    """The string literals of a module with their lines, the text parts of f-strings among them; no docstrings."""
    tree = ast.parse(source)
    docstrings = {
        statement.value
        for statement in ast.walk(tree)
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    }
    return [
        (node.value, node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings
    ]


def names_written_again(module, source):
    """Each literal that is an error code, or that holds the name of a column as a word."""
    column = re.compile(rf"\b({'|'.join(sorted(NAMES_OF_THEIR_OWN))})\b")
    return [
        f"{module}:{line} writes {found[0] if (found := column.search(text)) else text!r}"
        for text, line in literals_of(source)
        if text in CODES_OF_THEIR_OWN or column.search(text)
    ]


def test_every_module_of_the_package_has_its_layer():
    unplaced = sorted(TOP_LEVEL - set(LAYER_OF))
    assert not unplaced, f"locray/ has {', '.join(unplaced)}: say in LAYERS of this test which layer each belongs to"


@pytest.mark.parametrize("module", sorted(module for module in SOURCES if module.split(".")[0] in LAYER_OF))
def test_imports_point_down_only(module):
    assert not broken_layers(module, SOURCES[module])


@pytest.mark.parametrize("module", sorted(module for module in SOURCES if module.split(".")[0] in LAYER_OF))
def test_torch_and_ray_stay_in_their_place(module):
    assert not misplaced_frameworks(module, SOURCES[module])


@pytest.mark.parametrize("module", sorted(set(SOURCES) - MAY_NAME))
def test_no_column_and_no_error_code_is_named_a_second_time(module):
    assert not names_written_again(module, SOURCES[module])


def test_a_driver_of_labelling_imports_no_torch():
    """It would take seconds of every run, also of one that finds nothing to do."""
    program = "import sys, locray.cli, locray.labelling.run; print([name for name in sys.modules if 'torch' in name])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_module_is_longer_than_a_few_screens():
    too_long = {module: source.count("\n") for module, source in SOURCES.items() if source.count("\n") > MAX_LINES}
    assert not too_long


def test_every_module_says_what_it_is():
    assert not [module for module, source in SOURCES.items() if not ast.get_docstring(ast.parse(source))]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("images.decode", "from locray.datasets import FORMATS"),
        ("images.decode", "def f():\n    from locray import datasets"),
        ("storage.files", "import locray.sources.folder"),
        ("schema", "from locray import storage"),
        ("models.artifact", "import importlib\nimportlib.import_module('locray.labelling.run')"),
        ("labelling.run", "from locray.evaluation.run import evaluate"),
        ("training.run", "from locray.labelling.plan import Pipeline"),
        ("evaluation.run", "import locray.cli"),
    ],
)
def test_an_import_that_points_up_is_found(module, source):
    assert len(broken_layers(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("evaluation.run", "from locray.labelling.plan import Pipeline"),
        ("datasets.voc", "from locray.datasets.records import Dataset\nfrom locray import storage, __version__"),
        ("cli", "from locray.commands import train"),
    ],
)
def test_an_import_that_points_down_or_beside_is_not(module, source):
    assert not broken_layers(module, source)


@pytest.mark.parametrize(
    ("module", "source", "count"),
    [
        ("images.decode", "def f():\n    import torch.nn.functional as F", 1),
        ("datasets.voc", "from torchvision.io import read_image", 1),
        ("labelling.run", "import ray.data", 1),
        ("cli", "from ray import init", 1),
        ("benchmark.labelling", "import ray", 1),
        ("benchmark.peers.ray_data", "import ray", 0),
        ("labelling.pipeline", "import ray", 0),
        ("models.artifact", "import torch", 0),
    ],
)
def test_a_misplaced_framework_is_found(module, source, count):
    assert len(misplaced_frameworks(module, source)) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("x = row['image_uri']", 1),
        ("x = f'SELECT count(*), config_hash FROM {table}'", 1),
        ("x = 'decoder_crash'", 1),
        ("x = 'not_found: what a library says'", 0),
        ('def f():\n    """The image_uri of a row."""\n    y = 1\n    """And its etag, size_bytes."""', 0),
        ("x = f'{IMAGE_URI}, {ETAG}'", 0),
    ],
)
def test_a_name_written_again_is_found(source, count):
    assert len(names_written_again("labelling.run", source)) == count
