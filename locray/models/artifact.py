"""Saves networks as artifacts (`models.files`) and loads them.

Loading never unpickles: an artifact from a stranger is data, not code.
"""

import hashlib
import json
import math
from dataclasses import dataclass

import safetensors
import safetensors.torch
import torch
from torch import nn

from locray import storage
from locray.errors import UsageError
from locray.models.architectures import build_model
from locray.models.files import (
    INFO_FILE,
    INT8_FILE,
    WEIGHTS_FILE,
    ArtifactDescription,
    ArtifactInfo,
    model_id_of,
    network_sha256_of,
    read_artifact_info,
    read_weights,
)
from locray.models.interface import LabelModel


@dataclass(frozen=True, slots=True)
class LoadedArtifact:
    """A loaded artifact: the network in evaluation mode, on the CPU."""

    model: LabelModel
    info: ArtifactInfo
    model_id: str


def save_artifact(
    uri: str, model: LabelModel, info: ArtifactInfo, int8_graph: bytes | None = None
) -> ArtifactDescription:
    """Writes an artifact, replacing one that exists.

    Weights are written first: after an interrupted write the folder is no artifact, or fails the check of its hash.

    Args:
        uri: folder or s3:// prefix.
        model: the network that `info` describes.
        info: its description; the hashes are set here.
        int8_graph: ONNX file of the backbone in 8-bit integers.

    Raises:
        UsageError: the weights are not finite, as after a diverged training.
        StoreError: the folder can't be written.
    """
    assert isinstance(model, nn.Module)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    non_finite = _non_finite_tensors(state)
    if non_finite:
        raise UsageError(
            f"the trained weights are not finite ({', '.join(non_finite[:3])}): the training has diverged. "
            "Train again with a smaller --learning-rate"
        )
    weights = safetensors.torch.save(state)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    int8_sha256 = None if int8_graph is None else hashlib.sha256(int8_graph).hexdigest()
    hashes = {
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "network_sha256": network_sha256_of(info, shapes),
        "int8_sha256": int8_sha256,
    }
    complete = info.model_copy(update=hashes)
    description = json.dumps(complete.model_dump(), indent=2, ensure_ascii=False).encode()
    storage.write_bytes(storage.join(uri, WEIGHTS_FILE), weights)
    if int8_graph is not None:
        storage.write_bytes(storage.join(uri, INT8_FILE), int8_graph)
    storage.write_bytes(storage.join(uri, INFO_FILE), description)
    return ArtifactDescription(complete, model_id_of(complete, description))


def load_artifact(uri: str) -> LoadedArtifact:
    """Builds the network of an artifact, fills it with its weights, and puts it into evaluation mode.

    Raises:
        UsageError: there is no artifact at `uri`, or its files are damaged or don't belong together.
        StoreError: the store does not answer.
    """
    described = read_artifact_info(uri)
    info = described.info
    weights = read_weights(uri, info)
    model = build_model(info.architecture, len(info.classes), info.input_size)
    assert isinstance(model, nn.Module)
    _load_state(model, safetensors.torch.load(weights), uri)
    return LoadedArtifact(model.eval(), info, described.model_id)


def _load_state(model: nn.Module, tensors: dict[str, torch.Tensor], uri: str) -> None:
    expected = model.state_dict()
    mismatched = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape
    )
    if mismatched:
        raise UsageError(
            f"the weights of {uri} don't fit the network that its {INFO_FILE} describes: {len(mismatched)} tensors "
            f"differ, such as {mismatched[0]}. Train the model again, or use the version of locray that wrote it"
        )
    model.load_state_dict(tensors)


def _non_finite_tensors(tensors: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [name for name, tensor in tensors.items() if not math.isfinite(tensor.sum().item())]
