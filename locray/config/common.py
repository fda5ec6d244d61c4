"""What the options of several commands share. Used by the commands' own configuration classes."""

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Precision = Literal["auto", "bf16", "fp32"]
"""Of a network's arithmetic."""
Device = Literal["auto", "cpu", "gpu"]
"""What a network runs on."""
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


@dataclass(frozen=True, slots=True)
class BareFlagValue:
    """Of an option whose flag may stand without a value: what it then says."""

    value: str


class CommandConfig(BaseModel):
    """What every command takes."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    json_output: bool = Field(False, alias="json", description="Print one JSON object as the last line of stdout.")
    log_level: LogLevel = Field(
        "info",
        description="Least severe messages to show; debug adds those of Ray and the traceback of an unexpected error.",
    )
    log_format: LogFormat = Field(
        "text", description="Form of the messages on stderr: text, or json for one JSON object per line."
    )

    @property
    def verbose(self) -> bool:
        """Whether to show the messages of Ray, and tracebacks."""
        return self.log_level == "debug"


class ImageLimits(CommandConfig):
    """What an image may cost before it is refused."""

    max_bytes: Positive = Field(256 * 2**20, description="Largest image file, in bytes.")
    max_pixels: Positive = Field(178_956_970, description="Largest image, in pixels, by what its header declares.")


class DeviceOptions(CommandConfig):
    """What runs a network."""

    device: Device = Field(
        "auto",
        description="Where the network runs; auto takes GPUs where the cluster has some, gpu waits for them.",
    )


class ResultOptions(ImageLimits):
    """What changes a model's answers."""

    score_threshold: Fraction | None = Field(
        None,
        description="Keep detections that score at least this. Default: what the artifact says; `evaluate` keeps all.",
    )

    precision: Precision = Field(
        "auto", description="Arithmetic; auto takes bf16 where a quick measurement on the machine finds it faster."
    )

    def config_hash(self, input_size_px: int, score_threshold: float) -> str:
        """The `config_hash`: what changes a prediction beside the model, as 12 hex digits.

        Not the precision: it moves a box or a score by what rounding may, and no machine shall label again what
        another one has labelled.
        """
        settings = {
            "decode": "scaled",
            "input_size_px": input_size_px,
            "max_bytes": self.max_bytes,
            "max_pixels": self.max_pixels,
            "score_threshold": round(score_threshold, 6),
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


class InferenceOptions(ResultOptions, DeviceOptions):
    """How a model is run over images."""

    unit_size: Positive = Field(256, description="Images in a unit of work: one task fetches and decodes them.")
    batch_size: Positive = Field(32, description="Images in a batch of the network.")
    compiled: str = Field(
        "auto",
        description="Where to take the network in compiled form from, as `locray compile` makes it. auto: from the "
        "model's folder, if this user compiled it on this machine; never; or a folder or s3:// prefix whose packages "
        "are trusted: they are code.",
    )
    concurrent_gets: Positive = Field(64, description="Requests that one task keeps in flight to the store.")
    decode_timeout_s: Annotated[float, Field(gt=0)] = Field(
        60, description="Seconds after which the decoder of an image counts as hanging."
    )
    predictors: Positive | None = Field(
        None, description="Workers that hold the model. Default: one a GPU, or one on a machine without."
    )


class ModelOptions(InferenceOptions):
    """Which model is run over images."""

    model: str = Field(description="Folder or s3:// prefix of the model's artifact.")


class DatasetOptions(CommandConfig):
    """Which annotated data a command reads."""

    data: str = Field(description="Folder, .zip file or s3:// prefix of the data set.")
    format: str = Field(
        description="How the annotations are written: voc, coco, yolo, csv, folders, regions, parquet or predictions."
    )
    strict: bool = Field(
        False,
        description="Stop where annotations or images can't be used, instead of leaving them out.",
    )
    min_score: Fraction = Field(
        0.5, description="Least score of a detection that is taken for an annotation, with --format predictions."
    )
