"""The output folder of a training: one run's alone, and how to train again what it holds."""

import json

import yaml

from locray import storage
from locray.config import CommandConfig, TrainConfig
from locray.errors import UsageError
from locray.inference.packages import FOLDER as COMPILED_FOLDER
from locray.models.files import (
    INFO_FILE,
    INT8_FILE,
    WEIGHTS_FILE,
    ArtifactDescription,
    has_artifact,
    read_artifact_info,
)
from locray.training.history import EVENTS_FOLDER, HISTORY_FILE
from locray.training.plan import CHECKPOINTS_FOLDER, TrainPlan

RUN_NAME, IDENTITY = "run_name", "run_identity"
"""In the provenance of an artifact."""
SETTINGS_FILE = "train.yaml"
"""Every setting of the training, for `--config`."""
PAGE_FILE = "report.html"

_FILES = (INFO_FILE, WEIGHTS_FILE, INT8_FILE, HISTORY_FILE, SETTINGS_FILE, PAGE_FILE)
_FOLDERS = (CHECKPOINTS_FOLDER, EVENTS_FOLDER, COMPILED_FOLDER)
_NOT_SETTINGS = {*CommandConfig.model_fields, "output", "run_name", "overwrite"}


def finished_artifact(plan: TrainPlan) -> ArtifactDescription | None:
    """The artifact in the output, if this run has written it."""
    if not has_artifact(plan.output_uri):
        return None
    found = read_artifact_info(plan.output_uri)
    # Another threshold changes the description, but not the weights.
    same_threshold = plan.config.score_threshold in (None, found.info.score_threshold)
    return found if _is_of_run(found, plan) and same_threshold else None


def claim_output(plan: TrainPlan) -> None:
    """Makes the output this run's own: refuses that of another run, or deletes it with `--overwrite`.

    Raises:
        UsageError: the output holds another model, or checkpoints of another run, without `--overwrite`.
        StoreError: the output can't be written.
    """
    found = _other_run(plan)
    if found is not None:
        if not plan.config.overwrite:
            raise UsageError(
                f"{plan.output_uri} holds {found}. Choose another --output, or --overwrite to delete the other run"
            )
        for folder in _FOLDERS:
            storage.delete_folder(storage.join(plan.output_uri, folder))
        storage.delete(storage.join(plan.output_uri, name) for name in _FILES)
    claim_uri = _claim_uri(plan)
    if not storage.exists(claim_uri):
        storage.write_bytes(claim_uri, json.dumps({IDENTITY: plan.identity}).encode())
    settings = yaml.safe_dump(settings_of(plan.config), sort_keys=False, allow_unicode=True)
    storage.write_bytes(storage.join(plan.output_uri, SETTINGS_FILE), settings.encode())


def settings_of(config: TrainConfig) -> dict[str, object]:
    """The options that a model was trained with, by their names in a configuration file."""
    return config.model_dump(mode="json", exclude=_NOT_SETTINGS, by_alias=True)


def _other_run(plan: TrainPlan) -> str | None:
    """What the output holds of another run; None for nothing."""
    if has_artifact(plan.output_uri):
        found = read_artifact_info(plan.output_uri)
        if not _is_of_run(found, plan):
            return f"another model ({found.model_id})"
    for uri in storage.list_uris(plan.checkpoints_uri):
        folder, _, name = uri.rpartition("/")
        if folder != plan.checkpoints_uri or not name.endswith(".json"):
            continue
        if name != f"{plan.run_name}.json" or json.loads(storage.read_bytes(uri)).get(IDENTITY) != plan.identity:
            return f"checkpoints of a run named {name.removesuffix('.json')!r} with other options or other data"
    return None


def _is_of_run(found: ArtifactDescription, plan: TrainPlan) -> bool:
    provenance = found.info.provenance
    return provenance.get(RUN_NAME) == plan.run_name and provenance.get(IDENTITY) == plan.identity


def _claim_uri(plan: TrainPlan) -> str:
    return storage.join(plan.checkpoints_uri, f"{plan.run_name}.json")
