"""The second stage: from square images to detections in the pixels of each image. Run by the pipeline's model workers.

A plain callable that knows nothing of Ray.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from locray import boxes, schema
from locray.config import Device
from locray.errors import ErrorCode, UsageError
from locray.inference import int8
from locray.inference.cuda import GPU_ERRORS
from locray.inference.devices import dtype_for, keep_freed_memory
from locray.inference.network import Network
from locray.inference.packages import CompileKey, load_fitting
from locray.labelling.identity import PredictorSettings
from locray.models.artifact import load_artifact
from locray.models.interface import PredictedBoxes


class _Unanswered(NamedTuple):
    """Why the model has no answer for an image that could be decoded."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class _Answers:
    """What the model says of the rows that it has an answer for, and why it has none for the others."""

    rows: NDArray[np.intp]
    boxes_xyxy_px: NDArray[np.float64]
    scores: NDArray[np.float32]
    label_ids: NDArray[np.int64]
    without: dict[int, _Unanswered]

    @classmethod
    def none(cls, without: dict[int, _Unanswered]) -> "_Answers":
        """There is an answer for no row."""
        boxes_xyxy_px, scores, label_ids = np.zeros((0, 1, 4)), np.zeros((0, 1), np.float32), np.zeros((0, 1), np.int64)
        return cls(np.zeros(0, np.intp), boxes_xyxy_px, scores, label_ids, without)


class Predictor:
    """Holds a model and labels decoded units with it."""

    def __init__(self, settings: PredictorSettings, num_threads: int | None = None) -> None:
        self._num_threads = num_threads
        self._use_threads()
        self._settings = settings
        artifact = load_artifact(settings.model_uri)
        self._classes = artifact.info.classes
        self._input_size_px = artifact.info.input_size
        self.device = device = _device(settings.device)
        """What the network runs on."""
        if device.type == "cpu":
            keep_freed_memory()
        dtype = dtype_for(settings.precision, device)
        if artifact.info.int8_ranges is not None:
            int8.check_runs_on(device)
        self._network = Network(artifact.model, device, dtype, artifact.info.int8_ranges)
        if device.type == "cpu" and artifact.info.int8_ranges is None:
            precision = str(dtype).removeprefix("torch.")
            key = CompileKey.for_this_machine(
                artifact.model_id, precision, settings.batch_size, torch.get_num_threads()
            )
            example = torch.zeros(settings.batch_size, self._input_size_px, self._input_size_px, 3, dtype=torch.uint8)
            compiled = load_fitting(settings.packages, key, example)
            if compiled is not None:
                self._network = self._network.with_compiled(compiled)

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Labels a decoded unit (`schema.decoded_schema`): a table of `schema.PREDICTED_SCHEMA` in the same order."""
        self._use_threads()
        rows = np.flatnonzero(pc.equal(decoded[schema.STATUS], schema.STATUS_OK).to_numpy())
        if not len(rows):
            return self._as_table(decoded, _Answers.none({}))
        return self._as_table(decoded, self._predict(pixels_of(decoded[schema.IMAGE], self._input_size_px), rows))

    def _use_threads(self) -> None:
        # OpenMP has a number for each thread that calls it, and Ray calls from more than one. What torch computes
        # itself sets its own; a compiled network would go on with one, which Ray says in OMP_NUM_THREADS.
        if self._num_threads is not None:
            torch.set_num_threads(self._num_threads)

    def _predict(self, images: NDArray[np.uint8], rows: NDArray[np.intp]) -> _Answers:
        batch_size = self._settings.batch_size
        failed: dict[int, _Unanswered] = {}
        parts: list[tuple[NDArray[np.intp], PredictedBoxes]] = []
        choices = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        batches = self._batches(images, choices)
        for chosen, batch in zip(choices, batches, strict=True):
            try:
                parts.append((chosen, self._run(batch, len(chosen))))
            except GPU_ERRORS:
                raise
            except Exception:  # noqa: BLE001 - one image may be the cause; alone, each shows whether it is
                for row in chosen:
                    try:
                        (alone,) = self._batches(images, [np.array([row])])
                        parts.append((np.array([row]), self._run(alone, 1)))
                    except GPU_ERRORS:
                        raise
                    except Exception as error:  # noqa: BLE001
                        told = next(iter(str(error).splitlines()), type(error).__name__)
                        failed[int(row)] = _Unanswered(ErrorCode.MODEL_ERROR, told)
        if not parts:
            return _Answers.none(failed)
        self._network.wait()
        answered = np.concatenate([part[0] for part in parts])
        boxes_px, scores, label_ids = (np.concatenate([part[1][i].numpy() for part in parts]) for i in range(3))
        boxes_px = boxes_px.astype(np.float64)
        finite = np.isfinite(boxes_px).all(axis=(1, 2)) & np.isfinite(scores).all(axis=1)
        for row in answered[~finite]:
            failed[int(row)] = _Unanswered(ErrorCode.NON_FINITE, "the model's answer for this image is not finite")
        return _Answers(answered[finite], boxes_px[finite], scores[finite], label_ids[finite], failed)

    def _batches(self, images: NDArray[np.uint8], choices: list[NDArray[np.intp]]) -> Iterator[Tensor]:
        """The chosen rows of images (n, S, S, 3), filled up to batches of a shape that the network likes."""
        missing = [self._network.padded_size(len(rows), self._settings.batch_size) - len(rows) for rows in choices]
        return self._network.upload(
            np.pad(images[rows], ((0, more), (0, 0), (0, 0), (0, 0))) if more else images[rows]
            for rows, more in zip(choices, missing, strict=True)
        )

    def _run(self, batch: Tensor, num_images: int) -> PredictedBoxes:
        """Predictions of the first images of a batch; a GPU's are there after `Network.wait`."""
        predicted = self._network.predict(batch)
        return PredictedBoxes(*(values[:num_images].to("cpu", non_blocking=True) for values in predicted))

    def _as_table(self, decoded: pa.Table, answers: _Answers) -> pa.Table:
        columns = {name: decoded[name] for name in schema.DECODED_SCHEMA.names}
        if answers.without:
            names = (schema.STATUS, schema.ERROR_CODE, schema.ERROR_MESSAGE)
            changed = {name: decoded[name].to_pylist() for name in names}
            for row, why in answers.without.items():
                changed[schema.STATUS][row] = schema.STATUS_FAILED
                changed[schema.ERROR_CODE][row], changed[schema.ERROR_MESSAGE][row] = str(why.code), why.message
            columns |= {name: pa.array(values, pa.string()) for name, values in changed.items()}
        columns[schema.DETECTIONS] = self._detections(decoded, answers)
        return pa.table(columns, schema=schema.PREDICTED_SCHEMA)

    def _detections(self, decoded: pa.Table, answers: _Answers) -> pa.Array:
        """One list of `schema.DETECTION` a row, null for a row without an answer."""
        widths, heights = (
            decoded[name].fill_null(0).to_numpy().astype(np.int64)[answers.rows]
            for name in (schema.WIDTH, schema.HEIGHT)
        )
        corners = boxes.to_images(answers.boxes_xyxy_px, widths, heights, self._input_size_px).astype(np.float32)
        kept = (answers.scores > 0) & (answers.scores >= self._settings.score_threshold) & boxes.is_valid(corners)
        # The answers may stand in another order than the rows: a batch that failed was run again image by image.
        order = np.argsort(answers.rows, kind="stable")
        kept, corners, scores, label_ids = kept[order], corners[order], answers.scores[order], answers.label_ids[order]
        answered = np.zeros(len(decoded), dtype=bool)
        answered[answers.rows] = True
        lengths = np.zeros(len(decoded), dtype=np.int32)
        lengths[answers.rows[order]] = kept.sum(axis=1)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ids = pa.array(label_ids[kept].astype(np.int32))
        labels = pa.array(self._classes, pa.string()).take(ids)
        edges = [pa.array(corners[kept][:, edge]) for edge in range(4)]
        structs = pa.StructArray.from_arrays(
            [ids, labels, pa.array(scores[kept]), *edges], fields=list(schema.DETECTION)
        )
        return pa.ListArray.from_arrays(pa.array(offsets), structs, mask=pa.array(~answered))


def _device(wanted: Device) -> torch.device:
    if wanted == "gpu" and not torch.cuda.is_available():
        raise UsageError("--device gpu: PyTorch finds no GPU on the node of this worker; `nvidia-smi` there says why")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def pixels_of(column: pa.ChunkedArray, input_size_px: int) -> NDArray[np.uint8]:
    """The images (N, S, S, 3) of a column of flattened pixels; no copy where the column is one chunk."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=True)
    return np.asarray(flat).reshape(-1, input_size_px, input_size_px, 3)
