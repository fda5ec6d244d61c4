"""locray: labels every image of a bucket with classes and boxes, every night, exactly once.

The public names are imported when they are used first: `import locray` alone imports neither torch nor Ray.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from locray.api.model import ImageLike as ImageLike
    from locray.api.model import ImagePrediction as ImagePrediction
    from locray.api.model import Model as Model
    from locray.api.model import load_model as load_model
    from locray.api.reading import read_dataset as read_dataset
    from locray.api.reading import read_predictions as read_predictions
    from locray.api.runs import evaluate as evaluate
    from locray.api.runs import label as label
    from locray.api.runs import nightly as nightly
    from locray.api.runs import plan as plan
    from locray.api.runs import train as train
    from locray.api.runs import verify as verify
    from locray.config import EvaluateConfig as EvaluateConfig
    from locray.config import InferenceOptions as InferenceOptions
    from locray.config import LabelConfig as LabelConfig
    from locray.config import NightlyConfig as NightlyConfig
    from locray.config import PlanConfig as PlanConfig
    from locray.config import TrainConfig as TrainConfig
    from locray.config import VerifyConfig as VerifyConfig
    from locray.datasets.records import Annotation as Annotation
    from locray.datasets.records import Dataset as Dataset
    from locray.datasets.records import Record as Record
    from locray.errors import ErrorCode as ErrorCode
    from locray.errors import ExitCode as ExitCode
    from locray.errors import ExportError as ExportError
    from locray.errors import FencedError as FencedError
    from locray.errors import LocrayError as LocrayError
    from locray.errors import RunStoppedError as RunStoppedError
    from locray.errors import StoreAccessError as StoreAccessError
    from locray.errors import StoreError as StoreError
    from locray.errors import UsageError as UsageError
    from locray.errors import WorkersFailedError as WorkersFailedError
    from locray.evaluation.summary import EvaluationSummary as EvaluationSummary
    from locray.labelling.plan import LabelPlan as LabelPlan
    from locray.labelling.summary import LabelSummary as LabelSummary
    from locray.nightly.run import NightlyRun as NightlyRun
    from locray.progress import Progress as Progress
    from locray.training.run import TrainSummary as TrainSummary
    from locray.verification.run import Verification as Verification

__version__ = "0.1.0"

_MODULES = {
    "api.model": ("ImageLike", "ImagePrediction", "Model", "load_model"),
    "api.reading": ("read_dataset", "read_predictions"),
    "api.runs": ("evaluate", "label", "nightly", "plan", "train", "verify"),
    "config": (
        "EvaluateConfig",
        "InferenceOptions",
        "LabelConfig",
        "NightlyConfig",
        "PlanConfig",
        "TrainConfig",
        "VerifyConfig",
    ),
    "datasets.records": ("Annotation", "Dataset", "Record"),
    "errors": (
        "ErrorCode",
        "ExitCode",
        "ExportError",
        "FencedError",
        "LocrayError",
        "RunStoppedError",
        "StoreAccessError",
        "StoreError",
        "UsageError",
        "WorkersFailedError",
    ),
    "evaluation.summary": ("EvaluationSummary",),
    "labelling.plan": ("LabelPlan",),
    "labelling.summary": ("LabelSummary",),
    "nightly.run": ("NightlyRun",),
    "progress": ("Progress",),
    "training.run": ("TrainSummary",),
    "verification.run": ("Verification",),
}
_MODULE_OF = {name: f"locray.{module}" for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]  # noqa: PLE0604 - the names that are imported above


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'locray' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
