"""What becomes of a unit over which too many processes died."""

import numpy as np
import pyarrow as pa

from locray import schema
from locray.labelling.crashes import MAX_CRASHES, defer_unit
from locray.labelling.identity import PredictorSettings
from locray.labelling.predictor import Predictor

SIZE = 32


def test_a_unit_that_is_given_up_keeps_what_is_known_and_defers_the_rest(artifact: str) -> None:
    """What the decoder has said stays said."""
    outcomes = [
        (schema.STATUS_OK, None, None),
        (schema.STATUS_FAILED, "corrupt", "cut off"),
        (schema.STATUS_DEFERRED, "throttled", "503"),
        (schema.STATUS_OK, None, None),
    ]
    unit = [
        {
            schema.ORDINAL: number,
            schema.IMAGE_URI: f"s3://bucket/{number}.jpg",
            schema.WIDTH: 40,
            schema.HEIGHT: 30,
            schema.STATUS: status,
            schema.ERROR_CODE: code,
            schema.ERROR_MESSAGE: message,
            schema.IMAGE: np.zeros(SIZE * SIZE * 3, np.uint8),
        }
        for number, (status, code, message) in enumerate(outcomes)
    ]
    decoded = pa.Table.from_pylist(unit, schema=schema.decoded_schema(SIZE))
    rest = defer_unit(decoded, MAX_CRASHES)
    assert rest.schema == decoded.schema

    rows = Predictor(PredictorSettings(artifact, score_threshold=0.0, batch_size=2))(rest)
    assert rows.schema == schema.PREDICTED_SCHEMA
    assert rows[schema.ORDINAL].to_pylist() == [0, 1, 2, 3]
    assert rows[schema.STATUS].to_pylist() == ["deferred", "failed", "deferred", "deferred"]
    assert rows[schema.ERROR_CODE].to_pylist() == ["worker", "corrupt", "throttled", "worker"]
    first, *known, last = rows[schema.ERROR_MESSAGE].to_pylist()
    assert known == ["cut off", "503"]
    assert first == last
    assert first.startswith("5 model workers died over its unit: ")
    assert rows[schema.DETECTIONS].null_count == 4
