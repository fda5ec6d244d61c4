"""The configuration of every command. Each option is defined here, once."""

from locray.config.commands import COMMANDS, option_names
from locray.config.common import (
    BareFlagValue,
    CommandConfig,
    DatasetOptions,
    Device,
    ImageLimits,
    InferenceOptions,
    LogFormat,
    LogLevel,
    ModelOptions,
    Positional,
    Precision,
    ResultOptions,
)
from locray.config.labelling import LabelConfig, NightlyConfig, PlanConfig, StatusConfig, VerifyConfig
from locray.config.loading import ENVIRONMENT_PREFIX, load_config
from locray.config.submission import SubmitConfig
from locray.config.training import (
    AugmentationOptions,
    CompileConfig,
    ConvertConfig,
    DemoConfig,
    EvaluateConfig,
    ExportModelConfig,
    LearningOptions,
    PreviewConfig,
    QuantizeConfig,
    TrainConfig,
    WorkerOptions,
)

__all__ = [
    "COMMANDS",
    "ENVIRONMENT_PREFIX",
    "AugmentationOptions",
    "BareFlagValue",
    "CommandConfig",
    "CompileConfig",
    "ConvertConfig",
    "DatasetOptions",
    "DemoConfig",
    "Device",
    "EvaluateConfig",
    "ExportModelConfig",
    "ImageLimits",
    "InferenceOptions",
    "LabelConfig",
    "LearningOptions",
    "LogFormat",
    "LogLevel",
    "ModelOptions",
    "NightlyConfig",
    "PlanConfig",
    "Positional",
    "Precision",
    "PreviewConfig",
    "QuantizeConfig",
    "ResultOptions",
    "StatusConfig",
    "SubmitConfig",
    "TrainConfig",
    "VerifyConfig",
    "WorkerOptions",
    "load_config",
    "option_names",
]
