"""The options of the commands that label images and read the table. Re-exported by `locray.config`."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from locray.config.common import (
    BareFlagValue,
    CommandConfig,
    Fraction,
    ModelOptions,
    NotNegative,
    Positive,
    ResultOptions,
)
from locray.errors import ErrorCode, nearest

TARGET_FILE_BYTES = 64 * 2**20
"""Some million rows, which fit into the driver's memory to be sorted, and which readers take in one piece."""


def today_utc() -> date:
    """The date of now, in UTC."""
    return datetime.now(UTC).date()


_WORDS = {"all": True, "true": True, "1": True, "yes": True, "none": False, "false": False, "0": False, "no": False}


def _read_codes(value: Any) -> tuple[ErrorCode, ...]:
    """Codes as the command line, YAML and the environment give them: `true`, a list, or text with commas."""
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), [code.strip() for code in value.split(",")])
    if isinstance(value, bool):
        return tuple(ErrorCode) if value else ()
    if not isinstance(value, Sequence):
        raise ValueError(f"expected error codes with commas between them; found {value!r}")
    for code in value:
        if code not in list(ErrorCode):
            found = nearest(str(code), ErrorCode)
            hint = f"did you mean '{found}'?" if found else f"the codes are {', '.join(ErrorCode)}"
            raise ValueError(f"there is no error code {str(code)!r}; {hint}")
    return tuple(dict.fromkeys(map(ErrorCode, value)))


RetriedCodes = Annotated[tuple[ErrorCode, ...], BeforeValidator(_read_codes), BareFlagValue("all")]


class LabelConfig(ModelOptions):
    """`locray label`: every image of a store becomes one row of a table."""

    images: str = Field(
        description="Folder, s3:// prefix, pattern of either, manifest.json of an S3 Inventory, or a CSV or Parquet "
        "table of image URIs."
    )
    table: str = Field(description="Folder or s3:// prefix of the predictions table; made when it is not there.")
    uri_column: str | None = Field(None, description="Column of the image URIs, when --images is a table.")
    run_date: date = Field(default_factory=today_utc, description="The run's date, YYYY-MM-DD. Default: today in UTC.")
    limit: Positive | None = Field(None, description="Label at most this many images.")
    max_failure_rate: Fraction = Field(
        0.1,
        description="Exit with 3 when, at the end, more than this share of the images failed: ten of them at least, or "
        "in the table's first run.",
    )
    retry_failed: RetriedCodes = Field(
        (),
        description="Label the images again that failed before, all of them or those with one of these error codes; "
        "their rows are replaced.",
    )
    deferred_list: str | None = Field(
        None,
        description="Parquet file, on a disk or under s3://, to list the images in that the run leaves to the next "
        "one, with the cause of each.",
    )
    commit_rows: Positive = Field(100_000, description="Rows of one commit to the table.")
    commit_interval_s: Annotated[float, Field(gt=0)] = Field(60, description="Seconds after which rows are committed.")


class SampleOptions(CommandConfig):
    """How much of a table is predicted again to verify it."""

    sample: NotNegative = Field(32, description="Rows of the model to predict again, one image at a time.")


class NightlyConfig(LabelConfig, SampleOptions):
    """`locray nightly`: labels what is new or changed, verifies the table, tidies it up and reports."""

    retention_hours: NotNegative = Field(
        168,
        description="Hours for which files of older versions of the table are kept: the longest that a query of it "
        "may take.",
    )
    target_file_bytes: Positive = Field(
        TARGET_FILE_BYTES, description="Size up to which small files of a model and date are made into one."
    )


class PlanConfig(LabelConfig):
    """`locray plan`: what `locray label` would do. Writes nothing."""

    sample: Positive = Field(64, description="Images to label in memory for the estimate of time.")
    hourly_price: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Price of an hour of this machine, for the estimate of cost."
    )


class StatusConfig(CommandConfig):
    """`locray status`: what a predictions table holds."""

    table: str = Field(description="Folder or s3:// prefix of the predictions table.")


class VerifyConfig(ResultOptions, SampleOptions):
    """`locray verify`: whether a predictions table is what it should be. Writes nothing to it."""

    table: str = Field(description="Folder or s3:// prefix of the predictions table.")
    images: str | None = Field(
        None, description="What the table was labelled from: each of these images should have its row."
    )
    uri_column: str | None = Field(None, description="Column of the image URIs, when --images is a table.")
    model: str | None = Field(
        None,
        description="Folder or s3:// prefix of the artifact whose rows are meant, to predict some of them again; or "
        "as ID or ID/CONFIGURATION. Default: the only model of the table.",
    )
    seed: NotNegative = Field(0, description="Seed of the choice of the rows to predict again.")

    @model_validator(mode="after")
    def _column_is_of_images(self) -> Self:
        if self.uri_column is not None and self.images is None:
            raise ValueError("--uri-column needs --images: a table of image URIs")
        return self
