"""The stages of labelling in the test's own process, without Ray."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pytest

from locray.labelling.fetch_decode import FetchDecode
from locray.labelling.model import ModelSpec
from locray.labelling.predictor import Predictor
from locray.labelling.worklist import Worklist, num_units
from locray.sources import Source


@dataclass
class InProcess:
    """Replaces `labelling.pipeline.Pipeline`: one unit after the other."""

    model: ModelSpec

    def check(self, source: Source) -> None:
        """There are no other nodes."""

    def start(self) -> None:
        """There is no Ray to start."""

    def rows(self, worklist: Worklist) -> Iterator[pa.Table]:
        fetch_decode, predictor = FetchDecode(worklist, self.model), Predictor(self.model, num_threads=1)
        for unit in range(num_units(worklist)):
            yield predictor(fetch_decode(unit))


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes evaluations label in this process."""
    monkeypatch.setattr("locray.evaluation.run.Pipeline", InProcess)
