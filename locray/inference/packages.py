"""Compiled networks: where their packages lie, which one fits this machine, and which may run.

`locray compile` writes an AOTInductor package `<key>.pt2` with a record `<key>.json` beside it. A package is code: it
runs only if its user has compiled it herself, or has named its folder. A package that comes with a stranger's artifact
does not run.

Drivers import this module, so it imports torch only where a network is loaded.
"""

import hashlib
import logging
import os
import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from locray import storage
from locray.errors import StoreError
from locray.inference.compile_key import CompileKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from locray.inference.network import StaticNetwork

FOLDER = "compiled"
"""Folder of an artifact for the packages made from it."""

_log = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")


class PackageRecord(BaseModel):
    """Record that `locray compile` writes beside a package."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: CompileKey
    sha256: str
    """Hash of the package."""
    speedup: float
    """Speed relative to the eager network's, measured at compilation."""

    @classmethod
    def of(cls, key: CompileKey, package: bytes, speedup: float) -> "PackageRecord":
        """Describes a package by its content."""
        return cls(key=key, sha256=hashlib.sha256(package).hexdigest(), speedup=round(speedup, 3))


@dataclass(frozen=True, slots=True)
class PackageSource:
    """The folder that packages are taken from, and which of them may run."""

    folder: str | None
    """None: no package runs."""
    trusted: frozenset[str] | None
    """Their sha256; None: all that the folder holds."""

    @classmethod
    def of(cls, compiled: str, model_uri: str) -> "PackageSource":
        """From the option `--compiled`: `auto`, `never`, or the URI of a folder whose packages are trusted."""
        if compiled == "never":
            return NO_PACKAGES
        if compiled == "auto":
            return cls(storage.join(model_uri, FOLDER), _compiled_here())
        return cls(storage.normalise(compiled), None)

    def trusts(self, record: PackageRecord) -> bool:
        """Whether the user has asked for this package."""
        return self.trusted is None or record.sha256 in self.trusted


NO_PACKAGES = PackageSource(None, frozenset())


class _NotUsableError(Exception):
    """Why no package is used, as the rest of a sentence."""


def write_package(folder: str, record: PackageRecord, package: bytes, *, trust: bool) -> str:
    """Writes a package and its record into a folder, local or `s3://`, and returns the package's URI.

    Args:
        folder: Where to.
        record: Describes the package.
        package: Content of the .pt2 file.
        trust: Whether this user's runs may use the package without naming its folder.

    Raises:
        StoreError: the folder can't be written.
    """
    uri = storage.join(folder, f"{record.key.name}.pt2")
    storage.write_bytes(uri, package)
    # The record comes last: a package whose writing was interrupted has none.
    storage.write_bytes(storage.join(folder, f"{record.key.name}.json"), record.model_dump_json(indent=2).encode())
    if trust:
        with suppress(OSError):  # without a home directory, runs need --compiled FOLDER
            _state_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
            (_state_folder() / record.sha256).touch(mode=0o600)
    return uri


def delete_stale_packages(folder: str, model_id: str) -> None:
    """Deletes the packages of other models from a model's own folder: of what it was before it was trained again.

    Raises:
        StoreError: the folder can't be read, or not be written.
    """
    names = [record.key.name for record in _read_records(folder) if record.key.model_id != model_id]
    # Records first: one without a package would be taken for a package that is missing.
    for ending in ("json", "pt2"):
        storage.delete(storage.join(folder, f"{name}.{ending}") for name in names)


def load_fitting(source: PackageSource, key: CompileKey, example: "Callable[[], Tensor]") -> "StaticNetwork | None":
    """The compiled network that fits this machine, or None; says in one line of the log which it is, and why.

    Args:
        source: Where to look.
        key: Key that the package must match.
        example: Makes a batch (B, S, S, 3) uint8 that the loaded network is tried on.
    """
    try:
        uri, run = _load(source, key, example)
    except (_NotUsableError, StoreError) as reason:
        _log.info("the network runs in its eager form: %s", reason)
        return None
    _log.info("the network runs in its compiled form: %s", uri)
    return run


def _load(source: PackageSource, key: CompileKey, example: "Callable[[], Tensor]") -> "tuple[str, StaticNetwork]":
    if source.folder is None:
        raise _NotUsableError("--compiled never was given")
    record = _fitting_record(source.folder, key)
    uri = storage.join(source.folder, f"{key.name}.pt2")
    if not source.trusts(record):
        raise _NotUsableError(
            f"{uri} fits, but this user did not compile it here, and it is code; --compiled {source.folder} runs it"
        )
    package = storage.read_bytes(uri)
    if hashlib.sha256(package).hexdigest() != record.sha256:
        raise _NotUsableError(f"{uri} is not the file that its record describes. Run `locray compile` again")
    try:
        run = open_package(package)
        run(example())
    except RuntimeError as error:
        message = next(iter(str(error).splitlines()), type(error).__name__)
        raise _NotUsableError(f"{uri} does not run here ({message})") from error
    return uri, run


def log_packages(source: PackageSource, model_id: str) -> None:
    """Says in one line of the driver's log whether a run has compiled networks to choose from."""
    if source.folder is None:
        return
    try:
        records = [record for record in _read_records(source.folder) if record.key.model_id == model_id]
    except StoreError as error:
        _log.info("no compiled network is used: %s", error)
        return
    trusted = sum(source.trusts(record) for record in records)
    if not records:
        _log.info("%s holds no compiled network of the model; `locray compile` makes one", source.folder)
    elif not trusted:
        _log.info(
            "%s holds %d compiled networks of the model, but this user did not compile them here, and they are code; "
            "--compiled %s runs them",
            *(source.folder, len(records), source.folder),
        )
    else:
        _log.info(
            "%s holds %d compiled networks of the model; the log of each worker says whether one fits it",
            *(source.folder, trusted),
        )


def _read_records(folder: str) -> list[PackageRecord]:
    records = []
    for uri in storage.list_uris(folder):
        if uri.endswith(".json"):
            with suppress(ValidationError):
                records.append(PackageRecord.model_validate_json(storage.read_bytes(uri)))
    return records


def _fitting_record(folder: str, key: CompileKey) -> PackageRecord:
    records = _read_records(folder)
    if not records:
        raise _NotUsableError(f"{folder} holds no compiled network; `locray compile` makes one")
    nearest = min(records, key=lambda record: len(record.key.differences(key)))
    if differences := nearest.key.differences(key):
        raise _NotUsableError(
            f"no compiled network of {folder} fits; the nearest has {', '.join(differences)}. `locray compile` makes "
            "one for this machine"
        )
    return nearest


def open_package(package: bytes) -> "StaticNetwork":
    """The network of a .pt2 file. This runs the file's code.

    Raises:
        RuntimeError: it can't be loaded.
    """
    import torch

    with tempfile.TemporaryDirectory(prefix="locray-compiled-") as folder:
        path = Path(folder) / "network.pt2"
        path.write_bytes(package)
        try:
            # The public loader compiles probes of the processor first, which takes 14 s: docs/decisions/inference.md.
            loader: Any = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
        except (AttributeError, TypeError):
            public: Any = torch._inductor.aoti_load_package(str(path))
            return lambda images_u8: tuple(public(images_u8))
    return lambda images_u8: tuple(loader.boxed_run([images_u8]))


def _state_folder() -> Path:
    """Folder with records of the packages that this user has compiled on this machine."""
    return Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")) / "locray" / FOLDER


def _compiled_here() -> frozenset[str]:
    """The sha256 of each package that this user has compiled on this machine."""
    with suppress(OSError):
        return frozenset(name for name in os.listdir(_state_folder()) if _SHA256.fullmatch(name))
    return frozenset()
