"""The model of a run: an artifact, and the options that it is run with."""

from dataclasses import dataclass, replace
from typing import Any

from locray import storage
from locray.config import InferenceOptions
from locray.errors import UsageError
from locray.inference.packages import NO_PACKAGES, PackageSource
from locray.models.files import read_artifact_info, read_int8_graph, read_weights
from locray.table.key import PredictionKey


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """An artifact and the options that it is run with. Read without torch, whose import takes a driver seconds."""

    key: PredictionKey
    uri: str
    input_size_px: int
    options: InferenceOptions
    """With the score threshold that applies: by default, the artifact's."""
    packages: PackageSource = NO_PACKAGES
    """Where to look for the network in compiled form. Found by the driver, whose user has to trust them."""
    artifact_score_threshold: float = 0.0

    @property
    def score_threshold(self) -> float:
        """Detections below this score are left out."""
        return self.options.score_threshold or 0.0

    def with_options(self, **changes: Any) -> "ModelSpec":
        """A copy with some options changed."""
        return replace(self, options=self.options.model_copy(update=changes))

    @classmethod
    def read(cls, model: str, options: InferenceOptions) -> "ModelSpec":
        """Reads the whole artifact once, so that a damaged one is found before the run starts.

        Raises:
            UsageError: there is no artifact at the URI, it is damaged, or it doesn't run on the device asked for.
        """
        uri = storage.normalise(model)
        artifact = read_artifact_info(uri)
        read_weights(uri, artifact.info)
        if read_int8_graph(uri, artifact.info) is not None:
            options = _on_cpu(options, uri)
        size_px, threshold = artifact.info.input_size, options.score_threshold
        if threshold is None:
            threshold = artifact.info.score_threshold
        key = PredictionKey(artifact.model_id, options.config_hash(size_px, threshold))
        options = options.model_copy(update={"score_threshold": threshold})
        packages = PackageSource.of(options.compiled, uri)
        return cls(key, uri, size_px, options, packages, artifact.info.score_threshold)


def _on_cpu(options: InferenceOptions, uri: str) -> InferenceOptions:
    """The options of a model that computes in 8-bit integers, which a processor multiplies."""
    if options.device == "gpu":
        raise UsageError(
            f"--device gpu: {uri} computes in 8-bit integers, which need a processor. Leave the option out, or use "
            "the model that this one was made from"
        )
    return options.model_copy(update={"device": "cpu"})
