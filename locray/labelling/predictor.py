"""Second stage: from square images to detections in the pixels of each image.

A plain callable, independent of Ray.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from locray import boxes, schema
from locray.config import Device
from locray.errors import ErrorCode, UsageError
from locray.inference.batches import Batches
from locray.inference.compile_key import CompileKey
from locray.inference.devices import batch_size_for, dtype_for, keep_freed_memory
from locray.inference.network import Network
from locray.inference.onnx import replace_backbone
from locray.inference.packages import load_fitting
from locray.labelling.model import ModelSpec
from locray.models.artifact import load_artifact
from locray.models.files import read_int8_graph


class _Failure(NamedTuple):
    """Why the model predicts nothing for an image that could be decoded."""

    code: ErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class _Predictions:
    """Predictions for some rows of a unit, N rows of B boxes, and the failures of others."""

    rows: NDArray[np.intp]
    boxes_xyxy_px: NDArray[np.float64]
    """(N, B, 4), in pixels of the network's input."""
    scores: NDArray[np.float32]
    """(N, B)."""
    label_ids: NDArray[np.int64]
    """(N, B)."""
    failures: dict[int, _Failure]

    @classmethod
    def none(cls, failures: dict[int, _Failure]) -> "_Predictions":
        """Predictions for no row."""
        boxes_xyxy_px, scores, label_ids = np.zeros((0, 1, 4)), np.zeros((0, 1), np.float32), np.zeros((0, 1), np.int64)
        return cls(np.zeros(0, np.intp), boxes_xyxy_px, scores, label_ids, failures)


class Predictor:
    """Labels decoded units with a model that it has loaded.

    Args:
        model: The artifact and its options.
        num_threads: Threads of the network. Default: torch's.

    Raises:
        UsageError: there is no artifact, it is damaged, or `--device gpu` finds no GPU.
    """

    def __init__(self, model: ModelSpec, num_threads: int | None = None) -> None:
        self._num_threads = num_threads
        self._set_num_threads()
        self._model = model
        artifact = load_artifact(model.uri)
        self._classes = artifact.info.classes
        int8_graph = read_int8_graph(model.uri, artifact.info)
        self.device = device = _device("cpu" if int8_graph else model.options.device)
        """Device of the network."""
        if device.type == "cpu":
            keep_freed_memory()
        dtype = dtype_for("fp32" if int8_graph else model.options.precision, device)
        batch_size = model.options.batch_size or batch_size_for(
            device, model.input_size_px, model.options.predictors_per_gpu
        )
        if int8_graph is not None:
            replace_backbone(artifact.model, int8_graph, torch.get_num_threads())
        self._network = network = Network(artifact.model, device, dtype)
        if int8_graph is None:
            key = CompileKey.for_this_machine(
                artifact.model_id, str(dtype).removeprefix("torch."), batch_size, torch.get_num_threads(), device
            )
            shape = (batch_size, model.input_size_px, model.input_size_px, 3)
            # Made only where a package is tried: a batch may be larger than the memory.
            compiled = load_fitting(model.packages, key, lambda: torch.zeros(shape, dtype=torch.uint8, device=device))
            if compiled is not None:
                self._network = network = network.with_compiled(compiled)
        self._batches = Batches(network, batch_size)

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Labels a decoded unit (`schema.decoded_schema`). Returns `schema.PREDICTED_SCHEMA` in the same order."""
        self._set_num_threads()
        rows = np.flatnonzero(pc.equal(decoded[schema.STATUS], schema.STATUS_OK).to_numpy())
        if not len(rows):
            return self._as_table(decoded, _Predictions.none({}))
        return self._as_table(decoded, self._predict(pixels_of(decoded[schema.IMAGE], self._model.input_size_px), rows))

    def _set_num_threads(self) -> None:
        # OpenMP keeps a number per calling thread, and Ray calls from more than one. torch's own operations set it
        # themselves; a compiled network would run with one thread, which Ray sets in OMP_NUM_THREADS.
        if self._num_threads is not None:
            torch.set_num_threads(self._num_threads)

    def _predict(self, images: NDArray[np.uint8], rows: NDArray[np.intp]) -> _Predictions:
        parts, messages = self._batches.predict(images, rows)
        failures = {row: _Failure(ErrorCode.MODEL_ERROR, message) for row, message in messages.items()}
        if not parts:
            return _Predictions.none(failures)
        predicted = np.concatenate([part[0] for part in parts])
        boxes_px, scores, label_ids = (np.concatenate([part[1][i].numpy() for part in parts]) for i in range(3))
        boxes_px = boxes_px.astype(np.float64)
        finite = np.isfinite(boxes_px).all(axis=(1, 2)) & np.isfinite(scores).all(axis=1)
        for row in predicted[~finite]:
            failures[int(row)] = _Failure(ErrorCode.NON_FINITE, "the model's output for this image is not finite")
        return _Predictions(predicted[finite], boxes_px[finite], scores[finite], label_ids[finite], failures)

    def _as_table(self, decoded: pa.Table, predictions: _Predictions) -> pa.Table:
        columns = {name: decoded[name] for name in schema.DECODED_SCHEMA.names}
        if predictions.failures:
            names = (schema.STATUS, schema.ERROR_CODE, schema.ERROR_MESSAGE)
            changed = {name: decoded[name].to_pylist() for name in names}
            for row, failure in predictions.failures.items():
                changed[schema.STATUS][row] = schema.STATUS_FAILED
                changed[schema.ERROR_CODE][row] = str(failure.code)
                changed[schema.ERROR_MESSAGE][row] = failure.message
            columns |= {name: pa.array(values, pa.string()) for name, values in changed.items()}
        columns[schema.DETECTIONS] = self._detections(decoded, predictions)
        return pa.table(columns, schema=schema.PREDICTED_SCHEMA)

    def _detections(self, decoded: pa.Table, predictions: _Predictions) -> pa.Array:
        """One list of `schema.DETECTION` per row, null without a prediction."""
        widths, heights = (
            decoded[name].fill_null(0).to_numpy().astype(np.int64)[predictions.rows]
            for name in (schema.WIDTH, schema.HEIGHT)
        )
        size_px, threshold = self._model.input_size_px, self._model.score_threshold
        corners = boxes.to_images(predictions.boxes_xyxy_px, widths, heights, size_px).astype(np.float32)
        kept = (predictions.scores > 0) & (predictions.scores >= threshold) & boxes.is_valid(corners)
        # Predictions may be in another order than the rows: a batch that failed was run again image by image.
        order = np.argsort(predictions.rows, kind="stable")
        kept, corners = kept[order], corners[order]
        scores, label_ids = predictions.scores[order], predictions.label_ids[order]
        has_prediction = np.zeros(len(decoded), dtype=bool)
        has_prediction[predictions.rows] = True
        lengths = np.zeros(len(decoded), dtype=np.int32)
        lengths[predictions.rows[order]] = kept.sum(axis=1)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ids = pa.array(label_ids[kept].astype(np.int32))
        labels = pa.array(self._classes, pa.string()).take(ids)
        edges = [pa.array(corners[kept][:, edge]) for edge in range(4)]
        structs = pa.StructArray.from_arrays(
            [ids, labels, pa.array(scores[kept]), *edges], fields=list(schema.DETECTION)
        )
        return pa.ListArray.from_arrays(pa.array(offsets), structs, mask=pa.array(~has_prediction))


def _device(option: Device) -> torch.device:
    if option == "gpu" and not torch.cuda.is_available():
        raise UsageError("--device gpu: PyTorch finds no GPU on the node of this worker; `nvidia-smi` there says why")
    return torch.device("cuda" if option != "cpu" and torch.cuda.is_available() else "cpu")


def pixels_of(column: pa.ChunkedArray, input_size_px: int) -> NDArray[np.uint8]:
    """Images (N, S, S, 3) of a column of flattened pixels, without a copy if the column is one chunk."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=True)
    return np.asarray(flat).reshape(-1, input_size_px, input_size_px, 3)
