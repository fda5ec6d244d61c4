"""Rules of the source tree that no tool checks: allowed imports, and no name written a second time.

Imports inside functions count. The rules are about the source text, so they are checked on the syntax tree.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

from locray import schema
from locray.errors import ErrorCode

PACKAGE = Path(__file__).parents[1] / "locray"

PURE = {"errors", "schema", "boxes", "progress", "signals"}
"""Modules without a room: any room may import them."""

ROOMS = {
    "config": set(),
    "ray_runtime": set(),
    "storage": set(),
    "sources": {"storage"},
    "images": {"config", "storage"},
    "datasets": {"config", "storage", "images"},
    "metrics": set(),
    "models": {"storage"},
    "inference": {"config", "storage", "models"},
    "convert": {"config", "storage", "sources", "images", "datasets", "models", "inference"},
    "table": {"storage"},
    "labelling": {"config", "ray_runtime", "storage", "sources", "images", "models", "inference", "table"},
    "verification": {"config", "storage", "sources", "images", "table", "labelling"},
    "nightly": {"config", "storage", "sources", "table", "labelling", "verification"},
    "training": {"config", "ray_runtime", "storage", "images", "datasets", "metrics", "models", "inference"},
    "evaluation": {"config", "storage", "images", "datasets", "metrics", "table", "labelling"},
    "report": {
        *("config", "storage", "images", "datasets", "metrics", "models", "labelling", "verification", "nightly"),
        *("training", "evaluation"),
    },
    "demo": {"config", "storage", "images", "datasets", "table", "labelling", "training", "evaluation", "report"},
    "api": {
        *("config", "storage", "images", "datasets", "models", "table", "labelling", "verification", "nightly"),
        *("training", "evaluation", "report"),
    },
    "cli": {
        *("config", "ray_runtime", "datasets", "convert", "labelling", "verification", "nightly", "report", "demo"),
        "api",
    },
    "__main__": {"cli"},
}
"""Imports allowed in each room besides `PURE`, bottom up. A room may only import those listed before it."""

WITHOUT_TORCH = PURE | {"config", "ray_runtime", "storage", "sources", "images", "datasets", "metrics", "table"}
MAY_IMPORT_TORCH = {"images.letterbox"}
"""Resizing of images with torch, which is faster than Pillow."""
MAY_IMPORT_RAY = {"training.loop", "labelling.pipeline"}
"""Besides `ray_runtime`."""
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
"""Columns whose name has no other meaning. The others are common words (`width`, `status`, `format`, ...) or
belong to a library as well (obstore's `last_modified`).
"""
CODES_OF_THEIR_OWN = {str(code) for code in ErrorCode if "_" in code}
"""Without `changed`, `truncated` and `corrupt`: library messages are searched for these words."""
MAY_NAME = {"errors", "schema"}


def module_of(path):
    """`locray/images/decode.py` is `images.decode`; `locray/images/__init__.py` is `images`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_of(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module):
    return module.split(".")[0]


def imports_of(module, source):
    """Returns the absolute names of a module's imports, with the line: `locray.images.decode`, `torch.nn`."""
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


def forbidden_rooms(module, source):
    """Returns each import of locray that the list of rooms does not allow."""
    room = room_of(module)
    allowed = PURE | {room} | ROOMS.get(room, set())
    names = [(name.split("."), line) for name, line in imports_of(module, source)]
    inside = [(name[1], line) for name, line in names if name[0] == "locray" and len(name) > 1]
    return [f"{module}:{line} imports {other}" for other, line in inside if other in ROOMS and other not in allowed]


def misplaced_frameworks(module, source):
    """Returns each import of torch or ray outside the rooms that may import them."""
    found = []
    for name, line in imports_of(module, source):
        framework = name.split(".")[0]
        has_torch = room_of(module) not in WITHOUT_TORCH or module in MAY_IMPORT_TORCH
        has_ray = room_of(module) == "ray_runtime" or module in MAY_IMPORT_RAY
        if (framework in {"torch", "torchvision"} and not has_torch) or (framework == "ray" and not has_ray):
            found.append(f"{module}:{line} imports {framework}")
    return found


def names_written_again(module, source):
    """Returns each literal that is an error code or contains a column name as a word; docstrings don't count."""
    column = re.compile(rf"\b({'|'.join(sorted(NAMES_OF_THEIR_OWN))})\b")
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    literals = [
        (node.value, node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]
    return [
        f"{module}:{line} writes {found[0] if (found := column.search(text)) else text!r}"
        for text, line in literals
        if text in CODES_OF_THEIR_OWN or column.search(text)
    ]


def in_all(find, *, but=()):
    return [found for module, source in SOURCES.items() if module not in but for found in find(module, source)]


def test_every_module_has_its_room_and_rooms_stand_from_the_ground_up():
    unplaced = {room_of(module) for module in SOURCES if module} - set(ROOMS) - PURE
    assert not unplaced, f"say in ROOMS of this test what these may import: {', '.join(sorted(unplaced))}"
    rooms = list(ROOMS)
    assert not [room for place, room in enumerate(rooms) if not ROOMS[room] <= set(rooms[:place])]


def test_rooms_import_only_what_they_may():
    assert not in_all(forbidden_rooms, but={""})  # `import locray` exports names of the rooms


def test_no_room_may_import_what_it_does_not():
    imported = {
        (room_of(module), name.split(".")[1])
        for module, source in SOURCES.items()
        for name, _ in imports_of(module, source)
        if name.startswith("locray.")
    }
    assert not [(room, other) for room, others in ROOMS.items() for other in others if (room, other) not in imported]


def test_torch_and_ray_stay_in_their_place():
    assert not in_all(misplaced_frameworks)


def test_no_column_and_no_error_code_is_named_a_second_time():
    assert not in_all(names_written_again, but=MAY_NAME)


def test_a_driver_of_labelling_imports_no_torch():
    """The import would cost seconds in every run, even without new images."""
    program = "import sys, locray.cli, locray.labelling.run; print([name for name in sys.modules if 'torch' in name])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_module_is_longer_than_a_few_screens():
    assert not {module: source.count("\n") for module, source in SOURCES.items() if source.count("\n") > MAX_LINES}


def test_every_module_says_what_it_is():
    assert not [module for module, source in SOURCES.items() if not ast.get_docstring(ast.parse(source))]


def test_what_breaks_the_rules_is_found():
    for module, source in [
        ("images.decode", "from locray.datasets import FORMATS"),
        ("images.decode", "def f():\n    from locray import datasets"),
        ("storage.files", "import locray.sources.folder"),
        ("schema", "from locray import storage"),
        ("models.artifact", "import importlib\nimportlib.import_module('locray.labelling.run')"),
        ("labelling.run", "from locray.evaluation.run import evaluate"),
        ("training.run", "from locray.labelling.plan import Pipeline"),
    ]:
        assert len(forbidden_rooms(module, source)) == 1, (module, source)
    for module, source in [
        ("images.decode", "def f():\n    import torch.nn.functional as F"),
        ("datasets.voc", "from torchvision.io import read_image"),
        ("labelling.run", "import ray.data"),
        ("cli.main", "from ray import init"),
    ]:
        assert len(misplaced_frameworks(module, source)) == 1, (module, source)
    for source in ["x = row['image_uri']", "x = f'SELECT count(*), config_hash FROM {table}'", "x = 'decoder_crash'"]:
        assert len(names_written_again("labelling.run", source)) == 1, source
    for source in [
        "x = 'not_found: what a library says'",
        'def f():\n    """The image_uri of a row."""\n    y = 1\n    """And its etag, size_bytes."""',
        "x = f'{IMAGE_URI}, {ETAG}'",
    ]:
        assert not names_written_again("labelling.run", source), source
