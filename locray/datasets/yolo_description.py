"""What a YOLO data set says about itself: the names of its classes, and where its splits are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from locray import storage
from locray.datasets.fields import abbreviate, decode_text
from locray.datasets.files import extension_of, relative_path
from locray.errors import UsageError

_SPLIT_KEYS = ("train", "training", "val", "valid", "validation", "test", "testing")
_CLASS_FILES = ("classes.txt", ".names")


@dataclass(frozen=True, slots=True)
class Description:
    """What a `data.yaml`, or Darknet's `obj.data`, says.

    Attributes:
        uri: The file; None if there is none.
        names: The classes, as written; None where a file lists them.
        root: The data's folder on the machine where it was written.
        splits: Folders and lists of images by split, as written.
    """

    uri: str | None = None
    names: Any = None
    root: str = ""
    splits: Mapping[str, Sequence[str]] = field(default_factory=dict)


def read_description(data_uri: str, uris: Sequence[str]) -> Description:
    """The YAML file at the root that has `names`, else the `.data` file nearest to the root."""
    for uri in uris:
        if extension_of(uri) in (".yaml", ".yml") and "/" not in relative_path(data_uri, uri):
            content = _yaml(uri)
            if "names" in content:
                return _of_yaml(uri, content)
    for uri in sorted((uri for uri in uris if extension_of(uri) == ".data"), key=lambda uri: uri.count("/")):
        lines = (line.partition("=") for line in decode_text(storage.read_bytes(uri), uri).splitlines())
        content = {key.strip().lower(): value.strip() for key, equals, value in lines if equals and value.strip()}
        if "names" in content:
            splits = {key: [content[key]] for key in _SPLIT_KEYS if key in content}
            return Description(uri, None, "", splits)
    return Description()


def read_classes(data_uri: str, uris: Sequence[str], description: Description) -> list[str]:
    """The name of each class number, by the description or by the class file nearest to the root.

    Raises:
        UsageError: there are no names, or they are not those of 0, 1, 2, ...
    """
    if description.names is not None:
        return _named_classes(description.names, data_uri)
    files = sorted(filter(is_class_file, uris), key=lambda uri: uri.count("/"))
    if files:
        text = decode_text(storage.read_bytes(files[0]), files[0])
        return _named_classes([line.strip() for line in text.rstrip().splitlines()], files[0])
    raise UsageError(
        f"Found no class names in {data_uri}. "
        "Expected a data.yaml with `names`, or a classes.txt with one name per line."
    )


def is_class_file(uri: str) -> bool:
    """Whether the file lists the names of the classes, by its own name."""
    return uri.lower().endswith(_CLASS_FILES)


def _named_classes(names: object, where: str) -> list[str]:
    """The class names in order, from a list or a mapping of numbers to names."""
    if isinstance(names, dict):
        numbers = sorted(names) if all(isinstance(key, int) for key in names) else []
        if numbers != list(range(len(names))):
            found = abbreviate(list(names))
            raise UsageError(f"{where}, field names: found the numbers {found}, expected 0, 1, 2, ...")
        names = [names[key] for key in numbers]
    if not isinstance(names, list) or not names or not all(str(name).strip() for name in names):
        raise UsageError(f"{where}, field names: found {abbreviate(names)}, expected the name of each class.")
    return [str(name).strip() for name in names]


def _yaml(uri: str) -> Mapping[str, Any]:
    text = decode_text(storage.read_bytes(uri), uri)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{uri}: not YAML ({' '.join(str(error).split())}).") from None
    return content if isinstance(content, dict) else {}


def _of_yaml(uri: str, content: Mapping[str, Any]) -> Description:
    if "kpt_shape" in content:
        raise UsageError(f"{uri}, field kpt_shape: found a data set of key points, expected one of boxes.")
    splits: dict[str, Sequence[str]] = {}
    for key in _SPLIT_KEYS:
        value = content.get(key)
        paths = value if isinstance(value, list) else [value] if value else []
        if not all(isinstance(path, str) for path in paths):
            raise UsageError(f"{uri}, field {key}: found {abbreviate(value)}, expected a path or a list of paths.")
        if any(path.strip() for path in paths):
            splits[key] = [path for path in paths if path.strip()]
    root = content.get("path")
    return Description(uri, content["names"], root if isinstance(root, str) else "", splits)
