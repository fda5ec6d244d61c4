"""The configuration of every command: each option is defined here, once. Used by the command line, jobs and runs."""

from locray.config.commands import COMMANDS, option_names
from locray.config.common import (
    Answers,
    CommandConfig,
    DatasetUse,
    Device,
    ImageLimits,
    ModelUse,
    Precision,
    Prediction,
    WhenAlone,
)
from locray.config.labelling import LabelConfig, NightlyConfig, PlanConfig, StatusConfig, VerifyConfig
from locray.config.loading import ENVIRONMENT_PREFIX, load_config
from locray.config.training import (
    AugmentationUse,
    DemoConfig,
    EvaluateConfig,
    ExportModelConfig,
    PreviewConfig,
    QuantizeConfig,
    TrainConfig,
)

__all__ = [
    "COMMANDS",
    "ENVIRONMENT_PREFIX",
    "Answers",
    "AugmentationUse",
    "CommandConfig",
    "DatasetUse",
    "DemoConfig",
    "Device",
    "EvaluateConfig",
    "ExportModelConfig",
    "ImageLimits",
    "LabelConfig",
    "ModelUse",
    "NightlyConfig",
    "PlanConfig",
    "Precision",
    "Prediction",
    "PreviewConfig",
    "QuantizeConfig",
    "StatusConfig",
    "TrainConfig",
    "VerifyConfig",
    "WhenAlone",
    "load_config",
    "option_names",
]
