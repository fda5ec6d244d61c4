"""The configuration of every command: each option is defined here, once. Used by the command line, jobs and runs.

Values come from a YAML file, then the environment (`LOCRAY_<OPTION>`), then flags, later ones winning.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from locray.errors import UsageError

ENVIRONMENT_PREFIX = "LOCRAY_"
NOT_OPTIONS = frozenset({"LOCRAY_TEST_DATA"})

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Config = TypeVar("Config", bound="CommandConfig")


def today_utc() -> date:
    """The date of now, in UTC."""
    return datetime.now(UTC).date()


class CommandConfig(BaseModel):
    """What every command takes."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    json_output: bool = Field(False, alias="json", description="Print one JSON object as the last line of stdout.")
    verbose: bool = Field(False, description="Show the log messages of Ray and the traceback of an unexpected error.")


class ImageLimits(CommandConfig):
    """What an image may cost before it is refused."""

    max_bytes: Positive = Field(256 * 2**20, description="Largest image file, in bytes.")
    max_pixels: Positive = Field(178_956_970, description="Largest image, in pixels, by what its header declares.")


class ModelUse(ImageLimits):
    """How a model is run over images."""

    model: str = Field(description="Folder or s3:// prefix of the model's artifact.")
    score_threshold: Fraction | None = Field(
        None, description="Keep detections that score at least this. Default: what the artifact says."
    )
    unit_size: Positive = Field(256, description="Images in a unit of work: one task fetches and decodes them.")
    batch_size: Positive = Field(32, description="Images in a batch of the network.")
    concurrent_gets: Positive = Field(64, description="Requests that one task keeps in flight to the store.")
    predictors: Positive | None = Field(
        None, description="Workers that hold the model. Default: one a GPU, or one on a machine without."
    )

    def answer_settings(self, input_size_px: int, score_threshold: float) -> str:
        """The `config_hash`: what changes a prediction beside the model, as 12 hex digits."""
        settings = {
            "decode": "full",
            "input_size_px": input_size_px,
            "max_bytes": self.max_bytes,
            "max_pixels": self.max_pixels,
            "score_threshold": round(score_threshold, 6),
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


class LabelConfig(ModelUse):
    """`locray label`: every image of a store becomes one row of a table."""

    images: str = Field(description="Folder, glob, s3:// prefix, or a CSV or Parquet table of image URIs.")
    table: str = Field(description="Folder or s3:// prefix of the predictions table; made when it is not there.")
    uri_column: str | None = Field(None, description="Column of the image URIs, when --images is a table.")
    run_date: date = Field(default_factory=today_utc, description="The run's date, YYYY-MM-DD. Default: today in UTC.")
    limit: Positive | None = Field(None, description="Label at most this many images.")
    max_failure_rate: Fraction = Field(
        0.1, description="Exit with 3 when more than this share of the images failed; stop early when all of them do."
    )
    retry_failed: bool = Field(False, description="Label the images again that failed before; their rows are replaced.")
    commit_rows: Positive = Field(100_000, description="Rows of one commit to the table.")
    commit_interval_s: Annotated[float, Field(gt=0)] = Field(60, description="Seconds after which rows are committed.")


class PlanConfig(LabelConfig):
    """`locray plan`: what `locray label` would do. Writes nothing."""

    sample: Positive = Field(64, description="Images to label in memory for the estimate of time.")
    hourly_price: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Price of an hour of this machine, for the estimate of cost."
    )


class StatusConfig(CommandConfig):
    """`locray status`: what a predictions table holds."""

    table: str = Field(description="Folder or s3:// prefix of the predictions table.")


class DatasetUse(CommandConfig):
    """Which annotated data a command reads."""

    data: str = Field(description="Folder or s3:// prefix of the data set.")
    format: str = Field(description="How the annotations are written: voc or csv.")


class TrainConfig(DatasetUse, ImageLimits):
    """`locray train`: from a data set to an artifact, on Ray Train."""

    model: str = Field(
        "localizer/mobilenet_v2", description="Architecture: small_cnn or localizer/<torchvision trunk>."
    )
    output: str = Field(description="Folder or s3:// prefix for the artifact, its checkpoints and metrics.")
    train_split: str = Field("train", description="Split to learn from.")
    val_split: str = Field(
        "val", description="Split to choose the best epoch by; where the data has none, a tenth of the training split."
    )
    epochs: Positive = Field(10, description="Passes over the training split.")
    workers: Positive = Field(1, description="Training processes, one a GPU where there are GPUs.")
    batch_size: Positive = Field(32, description="Images in one optimiser step, over all workers.")
    input_size: Annotated[int, Field(ge=16, le=2048)] | None = Field(
        None, description="Side of the network's square input in pixels. Default: what suits the model."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(2e-3, description="Peak of the learning-rate schedule.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.05, description="AdamW's decoupled weight decay.")
    weights: str | None = Field(
        None, description="Weights of the trunk to start from: a .pth or .safetensors file, or a torchvision name."
    )
    rotation: Annotated[float, Field(ge=0, le=180)] = Field(
        10, description="Random rotation of up to this many degrees."
    )
    flip: Literal["none", "horizontal", "both"] = Field("horizontal", description="Random flips.")
    run_name: str | None = Field(None, description="Name to resume a run under. Default: derived from the options.")
    seed: int = Field(0, description="Seed of weights, order and augmentation.")
    score_threshold: Fraction = Field(0.0, description="Score threshold that the artifact carries.")


class EvaluateConfig(DatasetUse, ModelUse):
    """`locray evaluate`: an artifact's metrics on an annotated data set."""

    split: str = Field("test", description="Split to evaluate on.")
    output: str | None = Field(None, description="JSON file to write the metrics to.")


class DemoConfig(CommandConfig):
    """`locray demo`: makes data, trains, evaluates, labels and shows the result, on one machine."""

    output: Path = Field(description="Folder for everything that the demo makes.")
    seed: int = Field(0, description="Seed of the pictures and of the training.")

    @model_validator(mode="after")
    def _output_is_no_file(self) -> Self:
        if self.output.is_file():
            raise ValueError(f"the output is a file: {self.output}; give a folder, which is made when it is not there")
        return self


COMMANDS: Mapping[str, type[CommandConfig]] = {
    "demo": DemoConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "label": LabelConfig,
    "plan": PlanConfig,
    "status": StatusConfig,
}


def option_names(config_class: type[CommandConfig]) -> dict[str, str]:
    """Option name (as in YAML, with underscores) -> field name."""
    return {field.alias or name: name for name, field in config_class.model_fields.items()}


def load_config(
    config_class: type[Config],
    *,
    config_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Merges file, environment and flags into one validated configuration.

    Raises:
        UsageError: an unknown key (named with its nearest known one), a missing option, or a value out of range.
    """
    values: dict[str, Any] = {}
    if config_file is not None:
        values |= _read_yaml(config_file, set(option_names(config_class)))
    values |= _from_environment(environment or {}, set(option_names(config_class)))
    values |= flags or {}
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        raise UsageError(_describe(error)) from None


def nearest(name: str, known: set[str]) -> str | None:
    """The known name that is most like the given one, if any is near."""
    matches = difflib.get_close_matches(name, sorted(known), n=1)
    return matches[0] if matches else None


def _read_yaml(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the configuration file {path} can't be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"the configuration file {path} is no YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(
            f"the configuration file {path} holds a {type(content).__name__}; expected `option: value` lines"
        )
    values = {str(key).replace("-", "_"): value for key, value in content.items()}
    for key in values.keys() - known:
        raise UsageError(f"unknown option {key!r} in {path}. {_suggestion(key, known)}")
    return values


def _from_environment(environment: Mapping[str, str], known: set[str]) -> dict[str, Any]:
    """Options of this command. A variable near to a known option, but none of any command, is taken for a slip.

    Others pass: a Kubernetes service called locray sets variables such as LOCRAY_SERVICE_HOST.
    """
    all_known = {name for config_class in COMMANDS.values() for name in option_names(config_class)}
    values = {}
    for variable, value in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in NOT_OPTIONS:
            continue
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if key in known:
            values[key] = value
        elif key not in all_known and nearest(key, all_known):
            raise UsageError(f"unknown option in the environment: {variable}. {_suggestion(key, all_known)}")
    return values


def _suggestion(key: str, known: set[str]) -> str:
    found = nearest(key, known)
    return f"Did you mean {found!r}?" if found else f"Known options: {', '.join(sorted(known))}."


def _describe(error: ValidationError) -> str:
    """One line a problem, in the words of the command line."""
    lines = []
    for problem in error.errors():
        option = "--" + str(problem["loc"][0]).replace("_", "-") if problem["loc"] else ""
        if problem["type"] == "missing":
            lines.append(f"{option} is required")
        elif option:
            lines.append(f"{option}: {problem['msg'].lower()}; found {problem['input']!r}")
        else:
            lines.append(problem["msg"].removeprefix("Value error, "))
    return "; ".join(lines)
