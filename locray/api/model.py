"""A trained model in this process: from images to detections, without Ray and without a table."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageOps

from locray import schema, storage
from locray.api.runs import options_as_config
from locray.boxes import Letterbox
from locray.config import InferenceOptions
from locray.errors import ErrorCode, StoreError, UsageError
from locray.images.colour import to_rgb
from locray.images.decode import DecodedImage, DecodeLimits, ImageFailure, decode_image
from locray.images.fetch import Deferred, Fetched, FetchRequest, fetch_images
from locray.images.letterbox import decoded_side_px, letterbox_image
from locray.labelling.model import ModelSpec
from locray.labelling.worklist import unit_size_for

ImageLike = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
"""Path or URI, the bytes of an image file, a Pillow image, or RGB pixels (H, W, 3) uint8."""


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """Detections of one image, highest score first; no detections but an error code if it could not be decoded.

    Attributes:
        boxes_xyxy_px: (N, 4) float32, xmin, ymin, xmax, ymax in pixels of the upright image.
        scores: (N,) float32, from 0 to 1.
        labels: Names of the classes.
        label_ids: (N,) int32, numbers of the classes.
        width_px: Width of the upright image; None if it is not known.
        height_px: Height of the upright image; None if it is not known.
        error_code: Why there is no prediction; None if there is one.
        error_message: The same in words.
    """

    boxes_xyxy_px: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: list[str]
    label_ids: NDArray[np.int32]
    width_px: int | None
    height_px: int | None
    error_code: ErrorCode | None = None
    error_message: str | None = None

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.labels)


class Model:
    """A loaded model. Not thread-safe.

    Attributes:
        model_id: Name and hash of its artifact, as in the column `model_id` of a predictions table.
        config_hash: Hash of the options that change its predictions, as in the column `config_hash`.
        classes: Names of the classes; `label_ids` count them.
        input_size_px: Side of the network's square input.
    """

    def __init__(self, uri: str | os.PathLike[str], config: InferenceOptions) -> None:
        from locray.labelling.predictor import Predictor
        from locray.models.files import read_artifact_info

        model = ModelSpec.read(os.fspath(uri), config)
        self.model_id = model.key.model_id
        self.config_hash = model.key.config_hash
        self.classes: list[str] = list(read_artifact_info(storage.normalise(os.fspath(uri))).info.classes)
        self.input_size_px = model.input_size_px
        self._options = model.options
        self._limits = DecodeLimits.of(model.options)
        self._predictor: Predictor = Predictor(model)

    def __repr__(self) -> str:
        return f"<locray.Model {self.model_id}: {len(self.classes)} classes, {self.input_size_px} px>"

    def predict(self, images: Sequence[ImageLike]) -> list[ImagePrediction]:
        """Predicts images as `label` does: the same decoding, resizing and network.

        Pillow images and arrays are resized from full size, while JPEG files may be decoded at a reduced size.

        Raises:
            UsageError: an array is not (H, W, 3) uint8, or a Pillow image has a mode that can't become RGB.
            StoreError: a store failed, and retries are exhausted. A file that doesn't exist is an `error_code`.
        """
        if isinstance(images, str | bytes | os.PathLike | Image.Image | np.ndarray):
            raise UsageError(f"images: expected a list of images; found one {type(images).__name__}. Wrap it in a list")
        found: list[ImagePrediction] = []
        unit_size = unit_size_for(len(images), self._options.unit_size)
        for start in range(0, len(images), unit_size):
            unit = self._decoded(images[start : start + unit_size], start)
            found += map(_as_prediction, self._predictor(unit).to_pylist())
        return found

    def _decoded(self, images: Sequence[ImageLike], first: int) -> pa.Table:
        """Letterboxed images as a table of `schema.decoded_schema`."""
        side_px = self.input_size_px
        pixels = np.zeros((len(images), side_px, side_px, 3), dtype=np.uint8)
        rows: list[dict[str, Any]] = [{}] * len(images)
        for index, decoded in self._pictures(images, first):
            rows[index] = {
                schema.ORDINAL: index,
                schema.IMAGE_URI: "",
                schema.WIDTH: decoded.width_px,
                schema.HEIGHT: decoded.height_px,
                schema.FORMAT: decoded.format,
            }
            if isinstance(decoded, ImageFailure):
                rows[index] |= {
                    schema.STATUS: schema.STATUS_FAILED,
                    schema.ERROR_CODE: str(decoded.code),
                    schema.ERROR_MESSAGE: decoded.message,
                }
            else:
                rows[index][schema.STATUS] = schema.STATUS_OK
                letterbox = Letterbox.fit(decoded.width_px, decoded.height_px, side_px)
                letterbox_image(decoded.image_hwc_u8, letterbox, pixels[index])
        table = pa.Table.from_pylist(rows, schema=schema.DECODED_SCHEMA)
        column = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), side_px * side_px * 3)
        return table.append_column(schema.decoded_schema(side_px).field(schema.IMAGE), column)

    def _pictures(self, images: Sequence[ImageLike], first: int) -> Iterator[tuple[int, DecodedImage | ImageFailure]]:
        """Each image with its index, those from stores and folders last, as they arrive."""
        uris: dict[int, str] = {}
        for index, image in enumerate(images):
            if isinstance(image, str | os.PathLike):
                uris[index] = storage.normalise(os.fspath(image))
            elif isinstance(image, bytes):
                yield index, self._decode(image)
            else:
                yield index, _picture_of(image, f"images[{first + index}]")
        indices = list(uris)
        requests = [FetchRequest(uri, None, None) for uri in uris.values()]
        max_bytes, concurrency = self._limits.max_bytes, self._options.concurrent_gets
        for place, fetched in fetch_images(requests, max_bytes=max_bytes, concurrency=concurrency):
            if isinstance(fetched, Deferred):
                raise StoreError(f"{requests[place].uri} can't be read: {fetched.reason}")
            yield indices[place], self._decode(fetched.data) if isinstance(fetched, Fetched) else fetched

    def _decode(self, data: bytes) -> DecodedImage | ImageFailure:
        return decode_image(data, self._limits, min_longer_side_px=decoded_side_px(self.input_size_px))


def _picture_of(image: Image.Image | NDArray[np.uint8], name: str) -> DecodedImage:
    if isinstance(image, Image.Image):
        rgb = to_rgb(ImageOps.exif_transpose(image))
        if rgb is None:
            raise UsageError(f"{name}: a Pillow image of mode {image.mode} can't become RGB. Convert it before")
        image = np.array(rgb)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:  # noqa: PLR2004
        found = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UsageError(f"{name}: expected a path, bytes, a Pillow image or an array (H, W, 3) uint8; found {found}")
    if not image.size:
        raise UsageError(f"{name}: expected an array with pixels; found {image.shape}")
    height_px, width_px = image.shape[:2]
    # A read-only array is copied, since torch, which resizes it, does not accept one.
    return DecodedImage(np.require(image, requirements=["C", "W"]), width_px, height_px, "", 1)


def _as_prediction(row: dict[str, Any]) -> ImagePrediction:
    detections = row[schema.DETECTIONS] or []
    boxes = [[one[corner] for corner in schema.CORNERS] for one in detections]
    code = row[schema.ERROR_CODE]
    return ImagePrediction(
        boxes_xyxy_px=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array([one[schema.SCORE] for one in detections], np.float32),
        labels=[one[schema.LABEL] for one in detections],
        label_ids=np.array([one[schema.LABEL_ID] for one in detections], np.int32),
        width_px=row[schema.WIDTH],
        height_px=row[schema.HEIGHT],
        error_code=None if code is None else ErrorCode(code),
        error_message=row[schema.ERROR_MESSAGE],
    )


def load_model(uri: str | os.PathLike[str], **options: Any) -> Model:
    """Loads a model to predict with in this process.

    Args:
        uri: Folder or s3:// prefix of its artifact.
        options: Those of `InferenceOptions`, such as `score_threshold`, `device`, `precision` and `batch_size`.

    Raises:
        UsageError: there is no artifact, it is damaged, an option is wrong, or `device="gpu"` and there is no GPU.
    """
    return Model(uri, options_as_config(InferenceOptions, options))
