"""The stages of labelling in the process of the test: what evaluates a model needs no Ray."""

from collections.abc import Iterator

import pyarrow as pa
import pytest

from locray.labelling.fetch_decode import DecodeSettings, decode_rows
from locray.labelling.identity import PredictorSettings
from locray.labelling.predictor import Predictor
from locray.labelling.worklist import Worklist, num_units


class InProcess:
    """Stands in for `labelling.pipeline.Pipeline`: unit by unit."""

    def __init__(self, decode: DecodeSettings, predict: PredictorSettings, *_: object) -> None:
        self._decode = decode
        self._predict = predict

    def rows(self, worklist: Worklist) -> Iterator[pa.Table]:
        label = Predictor(self._predict)
        for unit in range(num_units(worklist)):
            yield label(decode_rows(worklist.read_unit(unit), self._decode))


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations label in this process."""
    monkeypatch.setattr("locray.evaluation.run.Pipeline", InProcess)
