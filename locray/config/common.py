"""Options that several commands share."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
"""Number format of a network's arithmetic."""
Device = Literal["auto", "cpu", "gpu"]
"""Where a network runs."""
AnnotatedFrame = Literal["upright", "stored"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


@dataclass(frozen=True, slots=True)
class BareFlagValue:
    """Marks an option whose flag may be given without a value: the value that it then has."""

    value: str


class PoolRange(NamedTuple):
    """Numbers of processes of a pool: those started at once, and those that it may grow to."""

    min: int
    max: int

    def __str__(self) -> str:
        """As the option is written."""
        return str(self.min) if self.min == self.max else f"{self.min}-{self.max}"


def _read_pool_size(value: Any) -> PoolRange:
    """Reads N or MIN-MAX."""
    if isinstance(value, PoolRange):
        return value
    found = re.fullmatch(r"([1-9]\d{0,6})(?:-([1-9]\d{0,6}))?", str(value).strip())
    if not found or (found[2] and int(found[2]) < int(found[1])):
        raise ValueError(f"expected a number of at least 1, or two as MIN-MAX; found {str(value)!r}")
    return PoolRange(int(found[1]), int(found[2] or found[1]))


PoolSize = Annotated[PoolRange, BeforeValidator(_read_pool_size)]


@dataclass(frozen=True, slots=True)
class Positional:
    """Marks the field that takes all arguments after the options, and names them in the help."""

    metavar: str


class CommandConfig(BaseModel):
    """Options of every command."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    json_output: bool = Field(False, alias="json", description="Print one JSON object as the last line of stdout.")
    log_level: LogLevel = Field(
        "info",
        description="Minimum level of the messages on stderr; debug adds those of Ray and tracebacks of unexpected "
        "errors.",
    )
    log_format: LogFormat = Field(
        "text", description="Form of the messages on stderr: text, or json for one JSON object per line."
    )

    @property
    def verbose(self) -> bool:
        """Whether to show the messages of Ray, and tracebacks."""
        return self.log_level == "debug"


class ImageLimits(CommandConfig):
    """Limits above which an image is not decoded."""

    max_bytes: Positive = Field(256 * 2**20, description="Maximum size of an image file, in bytes. Larger ones fail.")
    max_pixels: Positive = Field(
        178_956_970, description="Maximum width times height that an image's header may declare. Larger images fail."
    )


class DeviceOptions(CommandConfig):
    """Where a network runs."""

    device: Device = Field(
        "auto",
        description="Where the network runs. auto: on GPUs if the cluster has any; gpu: waits until GPUs are "
        "available.",
    )


class ResultOptions(ImageLimits):
    """Options that change the predictions of a model."""

    score_threshold: Fraction | None = Field(
        None,
        description="Minimum score of a detection. Default: that of the artifact; `evaluate` keeps all detections.",
    )

    precision: Precision = Field(
        "auto",
        description="Number format of the arithmetic. auto: bf16 where a short measurement finds it faster, on GPUs "
        "also fp16, else fp32.",
    )

    def config_hash(self, input_size_px: int, score_threshold: float) -> str:
        """Returns the column `config_hash`: a hash, 12 hex digits, of what changes predictions besides the model.

        Images whose rows have another hash are labelled again. The precision is no part of it: it changes boxes and
        scores by rounding only, and each machine of a cluster may choose another one.

        Args:
            input_size_px: Side of the network's square input.
            score_threshold: The threshold in effect, also where it is the artifact's.
        """
        # Whatever changes the result of these lines makes every bucket be labelled again, in each table that there is.
        # See docs/compatibility.md before you change the golden hashes of tests/config/test_config_hash.py.
        settings = {
            "decode": "scaled",
            "input_size_px": input_size_px,
            "max_bytes": self.max_bytes,
            "max_pixels": self.max_pixels,
            "score_threshold": round(score_threshold, 6),
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


MAX_PREDICTORS_PER_GPU = 16


class InferenceOptions(ResultOptions, DeviceOptions):
    """How a model runs over images."""

    unit_size: Positive | None = Field(
        None,
        description="Images per unit of work, which one task fetches and decodes. Default: 256, of fewer than 8,192 "
        "images 32 to 128.",
    )
    batch_size: Positive | None = Field(
        None,
        description="Images per batch of the network. Default: 32 on a processor, 8 to 128 on a GPU by its memory.",
    )
    compiled: str = Field(
        "auto",
        description="Where to take the network in compiled form from, as `locray compile` makes it. auto: from the "
        "model's folder, if this user compiled it on this machine; never; or a folder or s3:// prefix whose packages "
        "are trusted: they are code.",
    )
    concurrent_gets: Positive = Field(64, description="Concurrent requests of one task to the store.")
    decode_timeout_s: Annotated[float, Field(gt=0)] = Field(
        60, description="Timeout for decoding one image, in seconds."
    )
    predictors: PoolSize | None = Field(
        None,
        description="Number of model workers, N or MIN-MAX: they are started as GPUs or nodes become available. "
        "Default: one per GPU that the cluster has or can get; without GPUs one per node with CPUs.",
    )
    predictors_per_gpu: Annotated[int, Field(ge=1, le=MAX_PREDICTORS_PER_GPU)] = Field(
        1,
        description="Model workers that share a GPU, each with its own copy of the model: while one prepares or "
        "returns a unit, another computes.",
    )


class ModelOptions(InferenceOptions):
    """A model, and how it runs over images."""

    model: str = Field(description="Folder or s3:// prefix of the model.")


class DatasetOptions(CommandConfig):
    """A data set with annotations."""

    data: str = Field(description="Folder, .zip file or s3:// prefix of the data set.")
    format: str = Field(
        description="Format of the annotations: voc, coco, yolo, csv, folders, regions, parquet or predictions."
    )
    strict: bool = Field(
        False,
        description="Stop at annotations or images that can't be used, instead of skipping them.",
    )
    min_score: Fraction = Field(
        0.5, description="Minimum score of a detection that counts as an annotation, with --format predictions."
    )
    annotated_frame: AnnotatedFrame = Field(
        "upright",
        description="What boxes refer to in images that EXIF turns, where the annotated size doesn't tell: the upright "
        "image, or the stored one, as tools see it that ignore EXIF.",
    )
