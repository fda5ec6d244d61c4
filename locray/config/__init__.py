"""The configuration of every command: each option is defined here, once. Used by the command line, jobs and runs."""

from locray.config.commands import COMMANDS, option_names
from locray.config.common import (
    BareFlagValue,
    CommandConfig,
    DatasetOptions,
    Device,
    ImageLimits,
    InferenceOptions,
    ModelOptions,
    Precision,
    ResultOptions,
)
from locray.config.labelling import LabelConfig, NightlyConfig, PlanConfig, StatusConfig, VerifyConfig
from locray.config.loading import ENVIRONMENT_PREFIX, load_config
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
    "ModelOptions",
    "NightlyConfig",
    "PlanConfig",
    "Precision",
    "PreviewConfig",
    "QuantizeConfig",
    "ResultOptions",
    "StatusConfig",
    "TrainConfig",
    "VerifyConfig",
    "WorkerOptions",
    "load_config",
    "option_names",
]
