"""Options of the commands that label images and read predictions tables."""

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
"""About a million rows: they fit into the driver's memory to be sorted, and readers load them in one piece."""


def today_utc() -> date:
    """Returns the current date in UTC."""
    return datetime.now(UTC).date()


_WORDS = {"all": True, "true": True, "1": True, "yes": True, "none": False, "false": False, "0": False, "no": False}


def _read_codes(value: Any) -> tuple[ErrorCode, ...]:
    """Reads codes as the command line, YAML and the environment give them: `true`, a list, or text with commas."""
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), [code.strip() for code in value.split(",")])
    if isinstance(value, bool):
        return tuple(ErrorCode) if value else ()
    if not isinstance(value, Sequence):
        raise ValueError(f"expected error codes separated by commas; found {value!r}")
    for code in value:
        if code not in list(ErrorCode):
            found = nearest(str(code), ErrorCode)
            hint = f"did you mean '{found}'?" if found else f"the codes are {', '.join(ErrorCode)}"
            raise ValueError(f"there is no error code {str(code)!r}; {hint}")
    return tuple(dict.fromkeys(map(ErrorCode, value)))


RetriedCodes = Annotated[tuple[ErrorCode, ...], BeforeValidator(_read_codes), BareFlagValue("all")]


class LabelConfig(ModelOptions):
    """`locray label`: labels every image that the table doesn't hold yet, and adds one row per image to it."""

    images: str = Field(
        description="Images: a folder, an s3:// prefix, a glob pattern of either, one local file, the manifest.json "
        "of an S3 Inventory, or a CSV or Parquet table of image URIs.",
    )
    table: str = Field(description="Folder or s3:// prefix of the predictions table. Created if it does not exist.")
    uri_column: str | None = Field(None, description="Column that holds the image URIs, if --images is a table.")
    run_date: date = Field(default_factory=today_utc, description="Date of the run, YYYY-MM-DD. Default: today in UTC.")
    limit: Positive | None = Field(None, description="Label at most this many images.")
    max_failure_rate: Fraction = Field(
        0.1,
        description="Exit with code 3 if more than this share of the images failed. Fewer than ten failures count "
        "only in the first run of a table.",
    )
    retry_failed: RetriedCodes = Field(
        (),
        description="Label images again that failed in earlier runs, and replace their rows: all of them, or those "
        "with one of these error codes.",
    )
    deferred_list: str | None = Field(
        None,
        description="Parquet file, local or s3://, in which to list the images that the run deferred to the next "
        "one, with the cause of each.",
    )
    commit_rows: Positive = Field(100_000, description="Rows per commit to the table.")
    commit_interval_s: Annotated[float, Field(gt=0)] = Field(
        60, description="Maximum time between two commits, in seconds."
    )


class SampleOptions(CommandConfig):
    """How many rows to predict again."""

    sample: NotNegative = Field(32, description="Number of rows to predict again and compare, one image at a time.")


class NightlyConfig(LabelConfig, SampleOptions):
    """`locray nightly`: labels new and changed images, verifies the table, tidies it up and writes a report."""

    retention_hours: NotNegative = Field(
        168,
        description="Hours for which files of older table versions are kept. Queries of the table must not take "
        "longer.",
    )
    target_file_bytes: Positive = Field(
        TARGET_FILE_BYTES, description="Size up to which small files of one model and date are merged, in bytes."
    )


class PlanConfig(LabelConfig):
    """`locray plan`: estimates what `locray label` would do with the same options. Writes nothing."""

    sample: Positive = Field(64, description="Images to label in memory to estimate the time.")
    hourly_price: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Price per hour of this machine, or of the cluster of RAY_ADDRESS, to estimate the cost."
    )


class StatusConfig(CommandConfig):
    """`locray status`: shows what a predictions table holds."""

    table: str = Field(description="Folder or s3:// prefix of the predictions table.")


class VerifyConfig(ResultOptions, SampleOptions):
    """`locray verify`: checks that a predictions table is complete and consistent. Writes nothing to it."""

    table: str = Field(description="Folder or s3:// prefix of the predictions table.")
    images: str | None = Field(
        None, description="The --images that the table was labelled from: each of them must have a row."
    )
    uri_column: str | None = Field(None, description="Column that holds the image URIs, if --images is a table.")
    model: str | None = Field(
        None,
        description="Model whose rows to check: its folder or s3:// prefix, from which some of them are predicted "
        "again; or ID or ID/CONFIGURATION, without that. Default: the only model of the table.",
    )
    seed: NotNegative = Field(0, description="Seed for choosing the rows to predict again.")

    @model_validator(mode="after")
    def _column_is_of_images(self) -> Self:
        if self.uri_column is not None and self.images is None:
            raise ValueError("--uri-column needs --images with a table of image URIs")
        return self
