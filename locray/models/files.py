"""A trained model's files as data: description, bytes of the weights, name. Called where no network is made of them.

An artifact is a folder with `model.safetensors` and `model.json`. The hash of both names the model, so that a row of
the predictions table says which weights it came from. `models.artifact` makes a network of it.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import safetensors
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from locray import storage
from locray.errors import StoreAccessError, UsageError

WEIGHTS_FILE = "model.safetensors"
INFO_FILE = "model.json"
FORMAT_VERSION = 1

_HASH_DIGITS = 12
_IS_FINITE: dict[str, Callable[[bytes], NDArray[np.bool_]]] = {
    "F64": lambda data: np.isfinite(np.frombuffer(data, np.float64)),
    "F32": lambda data: np.isfinite(np.frombuffer(data, np.float32)),
    "F16": lambda data: np.isfinite(np.frombuffer(data, np.float16)),
    # numpy knows no bfloat16: infinity and NaN have all bits of the exponent.
    "BF16": lambda data: ~np.frombuffer(data, np.uint16) & 0x7F80 != 0,
}
"""By the names that safetensors gives to formats of numbers; all others are integers."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


class ArtifactInfo(BaseModel):
    """What `model.json` says: all that is needed to build the network and to read its answers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)] = FORMAT_VERSION
    architecture: str
    """Name for `models.build_model`."""
    classes: Annotated[list[str], Field(min_length=1)]
    """The label of each label id."""
    input_size: Annotated[int, Field(ge=1)]
    """Side of the square input in pixels. Images are letterboxed into it."""
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Detections below this score are left out unless the user says otherwise."""
    weights_sha256: str = ""
    """Of `model.safetensors`, so that files of two artifacts can't be mixed up. Filled in by `save_artifact`."""
    provenance: dict[str, str | int | float | bool | None] = {}
    """Where the network comes from: data, options, versions."""
    metrics: dict[str, float] = {}
    """What it reached on its validation split."""
    int8_ranges: dict[str, tuple[float, float]] | None = None
    """Of the activations of a backbone that computes in 8-bit integers where the processor can: see `models.int8`."""

    @model_validator(mode="after")
    def _classes_differ(self) -> "ArtifactInfo":
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes holds a label twice")
        return self


@dataclass(frozen=True, slots=True)
class ArtifactDescription:
    """An artifact without its weights."""

    info: ArtifactInfo
    model_id: str


def has_artifact(uri: str) -> bool:
    """Whether there is an artifact at `uri`, valid or not.

    Raises:
        StoreError: the store does not answer.
    """
    return storage.exists(storage.join(uri, INFO_FILE))


def read_artifact_info(uri: str) -> ArtifactDescription:
    """The description of an artifact, without reading its weights.

    Raises:
        UsageError: there is no artifact at `uri`, or its description is not valid.
        StoreError: the store does not answer.
    """
    document = _read(uri, INFO_FILE)
    try:
        info = ArtifactInfo.model_validate_json(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "document"
        raise UsageError(
            f"{storage.join(uri, INFO_FILE)} describes no model that this version of locray can run: {place}: "
            f"{first['msg']}. Train the model again, or use the version that wrote it"
        ) from error
    return ArtifactDescription(info, model_id_of(info, document))


def read_weights(uri: str, info: ArtifactInfo) -> bytes:
    """The content of `model.safetensors`, which is what `info` was written with: finite numbers.

    Raises:
        UsageError: the file is not there, is not the one, or holds NaN or infinity.
        StoreError: the store does not answer.
    """
    weights = _read(uri, WEIGHTS_FILE)
    if hashlib.sha256(weights).hexdigest() != info.weights_sha256:
        raise UsageError(
            f"{storage.join(uri, WEIGHTS_FILE)} is not the file that {INFO_FILE} was written with: it was cut off, "
            "changed or taken from another artifact. Copy the whole artifact again"
        )
    try:
        tensors = dict(safetensors.deserialize(weights))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise UsageError(
            f"{storage.join(uri, WEIGHTS_FILE)} is no safetensors file ({error}). Copy the whole artifact again"
        ) from error
    for name, tensor in tensors.items():
        is_finite = _IS_FINITE.get(tensor["dtype"])
        if is_finite is not None and not is_finite(tensor["data"]).all():
            raise UsageError(f"the weights of {uri} are not finite, such as {name}. Train the model again")
    return weights


def model_id_of(info: ArtifactInfo, document: bytes) -> str:
    """A model's name, and the hash of its description, which holds the hash of the weights."""
    name = _NOT_IN_NAMES.sub("-", info.architecture)
    return f"{name}@{hashlib.sha256(document).hexdigest()[:_HASH_DIGITS]}"


def _read(uri: str, file_name: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(uri, file_name))
    except StoreAccessError as error:
        raise UsageError(
            f"no model at {uri}: {error}. Expected a folder with {INFO_FILE} and {WEIGHTS_FILE}, as `locray train` "
            "writes to its --output"
        ) from error
