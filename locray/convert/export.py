"""`locray export-model`: writes an artifact in the format of another runtime.

The file is one graph from uint8 pixels to boxes, with normalisation, box decoding and suppression. It is written only
after its results were compared with those of the artifact.
"""

import os
from dataclasses import asdict, dataclass
from typing import Any

from locray import storage
from locray.config import ExportModelConfig
from locray.convert.comparison import check_images
from locray.convert.export_check import compare_with_artifact
from locray.convert.export_formats import export_network
from locray.errors import ExportError, UsageError
from locray.models.artifact import load_artifact
from locray.progress import Progress, Report
from locray.storage.uris import split_s3


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """The exported file and its comparison with the artifact, as `--json` prints them."""

    output: str
    format: str
    model_id: str
    size_bytes: int
    batch_size: int | None
    """Images per batch; None: any number."""
    compared_images: int
    compared_detections: int
    largest_difference_px: float
    largest_score_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)


def export(config: ExportModelConfig, report: Report) -> ExportSummary:
    """Exports the network of an artifact, compares the results of the two, and writes the file.

    Raises:
        UsageError: there is no artifact, the output is a folder, or torch can't export the network to this format.
        ExportError: the exported network gives other results than the artifact.
        StoreError: the file can't be written.
    """
    report(Progress("checking"))
    output_uri = _output_file(config.output)
    artifact = load_artifact(storage.normalise(config.model))
    if artifact.info.int8_sha256 is not None:
        raise UsageError(f"{config.model} computes in 8-bit integers: export the model that it was made from")
    report(Progress("exporting"))
    exported = export_network(artifact, config.to, config.batch_size)
    report(Progress("comparing with the artifact"))
    images = check_images(artifact.info.input_size)
    diff = compare_with_artifact(artifact, exported, images)
    if not diff.is_within_bounds:
        raise ExportError(
            f"{config.to} gives other results than the artifact: {diff} on {len(images)} images. No file was written. "
            f"Export to another format, or report it with the architecture, {artifact.info.architecture}"
        )
    storage.write_bytes(output_uri, exported.data)
    if not diff.matched:
        report(Progress("the artifact finds nothing in the generated images: compare the two on your own images"))
    return ExportSummary(
        output=output_uri,
        format=config.to,
        model_id=artifact.model_id,
        size_bytes=len(exported.data),
        batch_size=exported.batch_size,
        compared_images=len(images),
        compared_detections=diff.matched,
        largest_difference_px=diff.box_px,
        largest_score_difference=diff.score,
    )


def _output_file(output: str) -> str:
    uri = storage.normalise(output)
    is_folder = not split_s3(uri)[1] if storage.is_remote(uri) else os.path.isdir(storage.local_path(uri))
    if is_folder or output.endswith("/"):
        raise UsageError(f"--output {output} is a folder: expected a file, such as {uri}/model.onnx")
    return uri
