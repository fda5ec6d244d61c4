"""A trained network on disk: a folder with `model.safetensors` and `model.json`. Called by all that train or predict.

Loading never unpickles: an artifact from a stranger is data, not code. The hash of both files names the model, so
that a row of the predictions table says which weights it came from.
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Annotated

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from locray import storage
from locray.errors import StoreAccessError, UsageError
from locray.models import build_model
from locray.models.contract import LabelModel

WEIGHTS_FILE = "model.safetensors"
INFO_FILE = "model.json"
FORMAT_VERSION = 1

_HASH_DIGITS = 12
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


@dataclass(frozen=True, slots=True)
class LoadedArtifact:
    """An artifact ready to run: the network in evaluation mode, on the CPU."""

    model: LabelModel
    info: ArtifactInfo
    model_id: str


def save_artifact(uri: str, model: LabelModel, info: ArtifactInfo) -> ArtifactDescription:
    """Writes an artifact; one that is there is replaced.

    The weights come first: a folder whose writing was cut off is no artifact, or fails its hash.

    Args:
        uri: folder or s3:// prefix.
        model: the network that `info` describes.
        info: its description; the hash of the weights is filled in.

    Raises:
        UsageError: the weights are not finite, as after a training that diverged.
        StoreError: the folder can't be written.
    """
    assert isinstance(model, nn.Module)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    broken = _not_finite(state)
    if broken:
        raise UsageError(
            f"the trained weights are not finite ({', '.join(broken[:3])}): the training has diverged. "
            "Train again with a smaller --learning-rate"
        )
    weights = safetensors.torch.save(state)
    complete = info.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
    description = json.dumps(complete.model_dump(), indent=2, ensure_ascii=False).encode()
    storage.write_bytes(storage.join(uri, WEIGHTS_FILE), weights)
    storage.write_bytes(storage.join(uri, INFO_FILE), description)
    return ArtifactDescription(complete, _model_id(complete, description))


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
    return ArtifactDescription(info, _model_id(info, document))


def load_artifact(uri: str) -> LoadedArtifact:
    """The network of an artifact, with its weights, in evaluation mode.

    Raises:
        UsageError: there is no artifact at `uri`, or its files are broken or don't belong together.
        StoreError: the store does not answer.
    """
    described = read_artifact_info(uri)
    info = described.info
    weights = _read(uri, WEIGHTS_FILE)
    if hashlib.sha256(weights).hexdigest() != info.weights_sha256:
        raise UsageError(
            f"{storage.join(uri, WEIGHTS_FILE)} is not the file that {INFO_FILE} was written with: it was cut off, "
            "changed or taken from another artifact. Copy the whole artifact again"
        )
    model = build_model(info.architecture, len(info.classes), info.input_size)
    assert isinstance(model, nn.Module)
    _fill(model, _tensors(uri, weights), uri)
    return LoadedArtifact(model.eval(), info, described.model_id)


def _tensors(uri: str, weights: bytes) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(weights)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise UsageError(
            f"{storage.join(uri, WEIGHTS_FILE)} is no safetensors file ({error}). Copy the whole artifact again"
        ) from error
    return tensors


def _fill(model: nn.Module, tensors: dict[str, torch.Tensor], uri: str) -> None:
    wanted = model.state_dict()
    differing = sorted(
        name
        for name in wanted.keys() | tensors.keys()
        if name not in wanted or name not in tensors or wanted[name].shape != tensors[name].shape
    )
    if differing:
        raise UsageError(
            f"the weights of {uri} don't fit the network that its {INFO_FILE} describes: {len(differing)} tensors "
            f"differ, such as {differing[0]}. Train the model again, or use the version of locray that wrote it"
        )
    broken = _not_finite(tensors)
    if broken:
        raise UsageError(f"the weights of {uri} are not finite, such as {broken[0]}. Train the model again")
    model.load_state_dict(tensors)


def _not_finite(tensors: dict[str, torch.Tensor]) -> list[str]:
    """The names of tensors that hold NaN or infinity."""
    return [name for name, tensor in tensors.items() if not math.isfinite(tensor.sum().item())]


def _read(uri: str, file_name: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(uri, file_name))
    except StoreAccessError as error:
        raise UsageError(
            f"no model at {uri}: {error}. Expected a folder with {INFO_FILE} and {WEIGHTS_FILE}, as `locray train` "
            "writes to its --output"
        ) from error


def _model_id(info: ArtifactInfo, document: bytes) -> str:
    """Name and hash. The description holds the hash of the weights, so its own hash stands for both files."""
    name = _NOT_IN_NAMES.sub("-", info.architecture)
    return f"{name}@{hashlib.sha256(document).hexdigest()[:_HASH_DIGITS]}"
