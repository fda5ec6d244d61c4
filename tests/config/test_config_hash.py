"""Golden hashes of fixed configurations.

A changed hash makes every image of every table be labelled again. Where one of these tests fails, undo the change, or
follow docs/compatibility.md and change the expected hash in the same commit.
"""

import pytest

from locray.config import InferenceOptions, LabelConfig

PATHS = {"images": "i", "model": "m", "table": "t"}

UNCHANGING: list[dict[str, object]] = [
    {"precision": "bf16"},
    {"precision": "fp16"},
    {"device": "gpu"},
    {
        "unit_size": 7,
        "batch_size": 3,
        "predictors": "2",
        "predictors_per_gpu": 2,
        "concurrent_gets": 5,
        "decode_timeout_s": 9,
    },
    {"compiled": "never"},
    {"commit_rows": 9, "commit_interval_s": 1, "limit": 3, "run_date": "2026-01-01", "retry_failed": "all"},
    {"images": "other", "table": "other", "uri_column": "u", "max_failure_rate": 1, "deferred_list": "d"},
    {"log_level": "debug", "log_format": "json", "json": True},
]


@pytest.mark.parametrize(
    ("options", "input_size_px", "score_threshold", "expected"),
    [
        ({}, 224, 0.0, "27bbcedb3672"),
        ({}, 32, 0.5, "a626f581ba17"),
        ({"score_threshold": 0.25}, 640, 0.25, "b6aa8a5ba2e0"),
        ({"score_threshold": 0.1234567}, 640, 0.1234567, "02169d4419ac"),
        ({"max_bytes": 10_000_000}, 224, 0.0, "2e5125c52db6"),
        ({"max_pixels": 25_000_000}, 224, 0.0, "fad7b962785b"),
    ],
)
def test_the_hash_of_a_configuration_stays(
    options: dict[str, float], input_size_px: int, score_threshold: float, expected: str
) -> None:
    assert InferenceOptions(**options).config_hash(input_size_px, score_threshold) == expected


@pytest.mark.parametrize("options", UNCHANGING)
def test_options_that_change_no_prediction_keep_the_hash(options: dict[str, object]) -> None:
    assert LabelConfig(**PATHS | options).config_hash(224, 0.5) == LabelConfig(**PATHS).config_hash(224, 0.5)


def test_every_option_is_known_to_change_predictions_or_not() -> None:
    """Every new option must be added to one of the two tests."""
    changing = {"score_threshold", "max_bytes", "max_pixels"}
    unchanging = set().union(*UNCHANGING)
    options = {field.alias or name for name, field in LabelConfig.model_fields.items()}
    assert options - changing - unchanging - {"model"} == set()
