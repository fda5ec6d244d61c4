"""What labels depend on: the model and the settings that change its answers. Called by the runs and by evaluation."""

from dataclasses import dataclass

from locray import storage
from locray.config import Device, InferenceOptions, Precision
from locray.images.decode import DecodeLimits
from locray.inference.packages import NO_PACKAGES, PackageSource
from locray.labelling.fetch_decode import DecodeSettings
from locray.models.files import read_artifact_info, read_weights


@dataclass(frozen=True, slots=True)
class PredictorSettings:
    """What a model worker needs to begin."""

    model_uri: str
    score_threshold: float
    batch_size: int
    precision: Precision = "auto"
    device: Device = "auto"
    packages: PackageSource = NO_PACKAGES
    """Where to look for the network in compiled form."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One model under one configuration: two runs with the same identity give the same labels."""

    model_id: str
    config_hash: str
    decode: DecodeSettings
    predict: PredictorSettings

    @classmethod
    def of(cls, model: str, config: InferenceOptions) -> "Identity":
        """Reads the whole artifact once, so that a damaged one stops a run before it has begun.

        Makes no network of it: a driver needs no torch, whose import takes seconds.

        Raises:
            UsageError: there is no artifact at the URI, or it is damaged.
        """
        model_uri = storage.normalise(model)
        artifact = read_artifact_info(model_uri)
        read_weights(model_uri, artifact.info)
        size, default = artifact.info.input_size, artifact.info.score_threshold
        threshold = default if config.score_threshold is None else config.score_threshold
        decode = DecodeSettings(size, DecodeLimits.of(config), config.concurrent_gets, config.decode_timeout_s)
        return cls(
            model_id=artifact.model_id,
            config_hash=config.config_hash(size, threshold),
            decode=decode,
            predict=PredictorSettings(
                model_uri,
                threshold,
                config.batch_size,
                config.precision,
                config.device,
                PackageSource.of(config.compiled, model_uri),
            ),
        )
