"""Stand-ins for packages that a machine lacks, so that modules which import them can be imported.

They are for code that the check never calls: an attribute of a stand-in is an empty class.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NOT_NEEDED = (
    "boto3", "botocore", "click", "deltalake", "duckdb", "faster_coco_eval", "grpc", "jinja2", "obstore", "onnx",
    "onnxruntime", "pandas", "ray", "rich", "safetensors", "simplejpeg", "tensorboardX", "yaml",
)  # fmt: skip
"""Packages of locray that the small form of the check does without."""


def install_stand_ins() -> list[str]:
    """Installs stand-ins for those of `NOT_NEEDED` that can't be imported. Returns their names."""
    missing = [name for name in NOT_NEEDED if not _is_there(name)]
    for name in missing:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, _Finder(missing))
    return missing


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:
        return False


class _Empty(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty(name, (Exception,), {})


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty(name, (Exception,), {})


class _Finder(MetaPathFinder, Loader):
    def __init__(self, missing: Sequence[str]) -> None:
        self._missing = frozenset(missing)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG002
        is_missing = fullname.partition(".")[0] in self._missing
        return ModuleSpec(fullname, self, is_package=True) if is_missing else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass
