"""The verbs of the command line with their options."""

from collections.abc import Mapping

from locray.config.common import CommandConfig
from locray.config.labelling import LabelConfig, NightlyConfig, PlanConfig, StatusConfig, VerifyConfig
from locray.config.submission import SubmitConfig
from locray.config.training import (
    CompileConfig,
    ConvertConfig,
    DemoConfig,
    EvaluateConfig,
    ExportModelConfig,
    PreviewConfig,
    QuantizeConfig,
    TrainConfig,
)

COMMANDS: Mapping[str, type[CommandConfig]] = {
    "demo": DemoConfig,
    "preview": PreviewConfig,
    "convert": ConvertConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "export-model": ExportModelConfig,
    "quantize": QuantizeConfig,
    "compile": CompileConfig,
    "label": LabelConfig,
    "plan": PlanConfig,
    "nightly": NightlyConfig,
    "status": StatusConfig,
    "verify": VerifyConfig,
    "submit": SubmitConfig,
}


def option_names(config_class: type[CommandConfig]) -> dict[str, str]:
    """Maps names of options, as in YAML with underscores, to names of fields."""
    return {field.alias or name: name for name, field in config_class.model_fields.items()}
