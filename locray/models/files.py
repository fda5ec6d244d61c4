"""The files of a trained model, read without torch: description, weights as bytes, and the model id.

An artifact is a folder with `model.safetensors` and `model.json`; that of a quantized model also has `int8.onnx`. The
model id is a hash over all, so that every row of the predictions table names the weights that it came from.
`models.artifact` turns these files into a network.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
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
INT8_FILE = "int8.onnx"
FORMAT_VERSION = 1

_HASH_DIGITS = 12
_IS_FINITE: dict[str, Callable[[bytes], NDArray[np.bool_]]] = {
    "F64": lambda data: np.isfinite(np.frombuffer(data, np.float64)),
    "F32": lambda data: np.isfinite(np.frombuffer(data, np.float32)),
    "F16": lambda data: np.isfinite(np.frombuffer(data, np.float16)),
    # numpy has no bfloat16. Infinity and NaN have all bits of the exponent set.
    "BF16": lambda data: ~np.frombuffer(data, np.uint16) & 0x7F80 != 0,
}
"""By safetensors' names of the floating-point formats; all other formats are integers."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


class ArtifactInfo(BaseModel):
    """Content of `model.json`: what is needed to build the network and to interpret its predictions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)] = FORMAT_VERSION
    architecture: str
    """Name for `build_model`, such as `localizer/resnet18`."""
    classes: Annotated[list[str], Field(min_length=1)]
    """Labels; the index is the label id."""
    input_size: Annotated[int, Field(ge=1)]
    """Side of the square network input in pixels. Images are letterboxed to it."""
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Default threshold: detections below this score are dropped."""
    weights_sha256: str = ""
    """SHA-256 of `model.safetensors`, so that the files of two artifacts can't be mixed up. Set by `save_artifact`."""
    network_sha256: str = ""
    """Hash of the fields that the network is built from and of the tensors' names and shapes; `""`: not known."""
    provenance: dict[str, str | int | float | bool | None] = {}
    """Origin of the network: data, options, versions."""
    metrics: dict[str, float] = {}
    """Metrics on the validation split."""
    int8_sha256: str | None = None
    """SHA-256 of `int8.onnx`, the backbone in 8-bit integers. None: not quantized."""

    @model_validator(mode="after")
    def _classes_differ(self) -> "ArtifactInfo":
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes holds a label twice")
        return self


@dataclass(frozen=True, slots=True)
class ArtifactDescription:
    """Description and id of an artifact, without its weights."""

    info: ArtifactInfo
    model_id: str


def has_artifact(uri: str) -> bool:
    """Whether there is an artifact, valid or not, at `uri`.

    Raises:
        StoreError: the store does not answer.
    """
    return storage.exists(storage.join(uri, INFO_FILE))


def read_artifact_info(uri: str) -> ArtifactDescription:
    """Reads the description of an artifact, not its weights.

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
            f"{first['msg']}. Train the model again, or use the version of locray that wrote it"
        ) from error
    return ArtifactDescription(info, model_id_of(info, document))


def read_weights(uri: str, info: ArtifactInfo) -> bytes:
    """Reads the bytes of `model.safetensors`, after checking their hash, shapes, and that all values are finite.

    Raises:
        UsageError: the file is missing, differs from the one that `info` was written with, belongs to a network other
            than the one that `info` describes, or holds NaN or infinity.
        StoreError: the store does not answer.
    """
    weights = _read_checked(uri, WEIGHTS_FILE, info.weights_sha256)
    try:
        tensors = dict(safetensors.deserialize(weights))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise UsageError(
            f"{storage.join(uri, WEIGHTS_FILE)} is no safetensors file ({error}). Copy the whole artifact again"
        ) from error
    shapes = {name: tuple(tensor["shape"]) for name, tensor in tensors.items()}
    if info.network_sha256 and info.network_sha256 != network_sha256_of(info, shapes):
        raise UsageError(
            f"the weights of {uri} don't fit the network that its {INFO_FILE} describes: architecture, number of "
            "classes or input_size were changed after the training. Take back the change, or train the model again"
        )
    for name, tensor in tensors.items():
        is_finite = _IS_FINITE.get(tensor["dtype"])
        if is_finite is not None and not is_finite(tensor["data"]).all():
            raise UsageError(f"the weights of {uri} are not finite, such as {name}. Train the model again")
    return weights


def read_int8_graph(uri: str, info: ArtifactInfo) -> bytes | None:
    """Reads the bytes of `int8.onnx`, after checking their hash; None if the model is not quantized.

    Raises:
        UsageError: the file is missing, or differs from the one that `info` was written with.
        StoreError: the store does not answer.
    """
    return None if info.int8_sha256 is None else _read_checked(uri, INT8_FILE, info.int8_sha256)


def network_sha256_of(info: ArtifactInfo, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Hash of what a network is built from, and of the shapes of its tensors by name."""
    built_from = [info.architecture, len(info.classes), info.input_size, sorted(shapes.items())]
    return hashlib.sha256(json.dumps(built_from).encode()).hexdigest()


def model_id_of(info: ArtifactInfo, document: bytes) -> str:
    """Architecture and hash of `model.json`, which contains the hash of the weights: `name@0123456789ab`."""
    name = _NOT_IN_NAMES.sub("-", info.architecture)
    return f"{name}@{hashlib.sha256(document).hexdigest()[:_HASH_DIGITS]}"


def _read_checked(uri: str, file_name: str, sha256: str) -> bytes:
    data = _read(uri, file_name)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UsageError(
            f"{storage.join(uri, file_name)} is not the file that {INFO_FILE} was written with: it was truncated, "
            "changed or taken from another artifact. Copy the whole artifact again"
        )
    return data


def _read(uri: str, file_name: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(uri, file_name))
    except StoreAccessError as error:
        raise UsageError(
            f"no model at {uri}: {error}. Expected a folder with {INFO_FILE} and {WEIGHTS_FILE}, as `locray train` "
            "writes to its --output"
        ) from error
