"""Comparison of two forms of a network: the images, and the measure of agreement."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from locray.boxes import Letterbox
from locray.images.decode import DecodedImage, DecodeLimits
from locray.images.fetch import Fetched, FetchRequest, fetch_images
from locray.images.isolated import IsolatedDecoder
from locray.images.letterbox import decoded_side_px, letterbox_image
from locray.models.interface import PredictedBoxes

MIN_AGREEMENT = 0.95
"""Minimum share of the images. Where two classes or boxes are tied in an image, rounding decides."""
MAX_SCORE_DIFFERENCE = 0.05

_SAME_BOX_IOU = 0.9
_NUM_PATCHES = 6
_DECODE_TIMEOUT_S = 60.0


class OutputDiff(NamedTuple):
    """Agreement of two forms of a network on the best detection of each image."""

    same_class: float
    """Share of the images whose best detections have the same class, or that have none in both."""
    same_box: float
    """Share of the images whose best detections have an IoU of 0.9 or more, or that have none in both."""
    score_difference: float
    """Largest difference between the scores of best detections; NaN if a score is NaN."""

    @classmethod
    def of(cls, one: PredictedBoxes, other: PredictedBoxes) -> "OutputDiff":
        """Compares predictions for the same images."""
        scores = torch.stack([one.scores[:, 0], other.scores[:, 0]])
        in_both, in_none = (scores > 0).all(0), (scores <= 0).all(0)
        same_class = (one.label_ids[:, 0] == other.label_ids[:, 0]) & in_both
        best = zip(one.boxes_xyxy_px[:, :1], other.boxes_xyxy_px[:, :1], strict=True)
        ious = torch.stack([box_iou(box, other_box)[0, 0] for box, other_box in best])
        same_box = (ious >= _SAME_BOX_IOU) & in_both
        difference = (scores[0] - scores[1]).abs().max()
        class_share, box_share = ((same | in_none).float().mean().item() for same in (same_class, same_box))
        return cls(class_share, box_share, difference.item())

    @property
    def agrees(self) -> bool:
        """Whether rounding explains the difference."""
        return min(self.same_class, self.same_box) >= MIN_AGREEMENT and self.score_difference <= MAX_SCORE_DIFFERENCE


def check_images(input_size_px: int, count: int = 8) -> Tensor:
    """Generated images (count, S, S, 3) uint8, always the same: noise, black, and coloured patches on gradients."""
    random = torch.Generator().manual_seed(0)
    size = (input_size_px, input_size_px, 3)
    gradient = torch.linspace(0, 255, input_size_px).round().to(torch.uint8)
    images = []
    for index in range(count):
        if index == 0:
            image = torch.randint(256, size, generator=random, dtype=torch.uint8)
        elif index == 1:
            image = torch.zeros(size, dtype=torch.uint8)
        else:
            image = (gradient[:, None] if index % 2 else gradient[None, :])[..., None].expand(size).clone()
            for _ in range(_NUM_PATCHES):
                left, top, width, height = torch.randint(1, input_size_px // 2 + 1, (4,), generator=random).tolist()
                colour = torch.randint(256, (3,), generator=random, dtype=torch.uint8)
                image[top : top + height, left : left + width] = colour
        images.append(image)
    return torch.stack(images)


def decode_images(uris: Sequence[str], input_size_px: int, limits: DecodeLimits) -> Tensor:
    """Fetches, decodes and letterboxes images; those that fail are left out.

    Images are decoded in a child process, so that one that crashes the decoder fails alone.

    Returns:
        (N, S, S, 3) uint8, in the order of `uris`.
    """
    images = np.zeros((len(uris), input_size_px, input_size_px, 3), dtype=np.uint8)
    usable = np.zeros(len(uris), dtype=bool)
    requests = [FetchRequest(uri, None, None) for uri in uris]
    with IsolatedDecoder(limits, _DECODE_TIMEOUT_S, decoded_side_px(input_size_px)) as decode:
        for index, fetched in fetch_images(requests, max_bytes=limits.max_bytes):
            decoded = decode(fetched.data) if isinstance(fetched, Fetched) else fetched
            if isinstance(decoded, DecodedImage):
                letterbox = Letterbox.fit(decoded.width_px, decoded.height_px, input_size_px)
                letterbox_image(decoded.image_hwc_u8, letterbox, images[index])
                usable[index] = True
    return torch.from_numpy(images[usable])
