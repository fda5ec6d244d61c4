"""`localizer/<backbone>`: finds one object per image.

A class head on globally pooled features sees mostly background when objects are small. Here an attention map over the
cells of stride 16 locates the object: the class is predicted from the features under the attention, and the box is the
mean of the boxes that the cells predict, weighted by the attention.

Shapes: B images, C classes, N cells of stride 16, D features.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from locray.errors import UsageError
from locray.models.backbones import Backbone, build_backbone
from locray.models.interface import IMAGENET_MEAN, IMAGENET_STD, LOSS, LabelModel, Normalise, Targets
from locray.models.single_object import SingleObject, box_loss, classification_loss

DEFAULT_INPUT_SIZE_PX = 224
_STRIDE = 16
_COARSEST_STRIDE = 32
_NECK_CHANNELS = 128
_LABEL_SMOOTHING = 0.1
_CLASS_DROPOUT = 0.2


class Localizer(SingleObject):
    """A backbone, a neck that merges its feature maps of stride 16 and 32, and heads over the cells of stride 16.

    Args:
        backbone: gives the feature maps of stride 16 and 32.
        num_classes: C; one more logit stands for "no object".
        input_size_px: side of the square input, a multiple of 32.
    """

    def __init__(self, backbone: Backbone, num_classes: int, input_size_px: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_size_px = input_size_px
        self.normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        self.backbone = backbone
        fine_channels, coarse_channels = backbone.channels
        self.lateral_fine = nn.Conv2d(fine_channels, _NECK_CHANNELS, 1)
        self.lateral_coarse = nn.Conv2d(coarse_channels, _NECK_CHANNELS, 1)
        # Group norm, since the neck has no pretrained statistics and batches per worker may be small.
        self.neck = nn.Sequential(
            nn.GroupNorm(8, _NECK_CHANNELS),
            nn.ReLU(inplace=True),
            nn.Conv2d(_NECK_CHANNELS, _NECK_CHANNELS, 3, padding=1, bias=False),
            nn.GroupNorm(8, _NECK_CHANNELS),
            nn.ReLU(inplace=True),
        )
        self.cell_head = nn.Conv2d(_NECK_CHANNELS, 5, 3, padding=1)
        class_channels = coarse_channels + _NECK_CHANNELS
        self.class_head = nn.Sequential(nn.Dropout(_CLASS_DROPOUT), nn.Linear(class_channels, num_classes + 1))
        side = input_size_px // _STRIDE
        centres = (torch.arange(side, dtype=torch.float32) + 0.5) * _STRIDE
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        self.register_buffer("centres_xy_px", torch.stack([columns.flatten(), rows.flatten()], 1), persistent=False)

    def forward(self, images_u8: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps images (B, 3, S, S) to class logits (B, C + 1), boxes (B, 4) in pixels, and cell logits (B, N)."""
        fine, coarse = self.backbone(self.normalise(images_u8))
        upsampled = functional.interpolate(self.lateral_coarse(coarse), scale_factor=2.0, mode="nearest")
        neck = self.neck(self.lateral_fine(fine) + upsampled)
        cells = self.cell_head(neck).float().flatten(2)
        cell_logits = cells[:, 0]
        attention = cell_logits.softmax(dim=1)
        boxes = (self._cell_boxes(cells[:, 1:]) * attention[:, :, None]).sum(dim=1)
        class_features = self._attend(neck, coarse, attention)
        return self.class_head(class_features.to(neck.dtype)).float(), boxes, cell_logits

    def _cell_boxes(self, distances: Tensor) -> Tensor:
        """Boxes (B, N, 4) from distances (B, 4, N) to left, top, right, bottom, as in FCOS (Tian et al. 2019)."""
        left, top, right, bottom = (functional.softplus(distances) * _STRIDE * 2).unbind(dim=1)
        x, y = self.get_buffer("centres_xy_px").unbind(dim=1)
        return torch.stack([x - left, y - top, x + right, y + bottom], dim=2)

    def _attend(self, neck: Tensor, coarse: Tensor, attention: Tensor) -> Tensor:
        """Features (B, D) float32 of both maps, averaged under the attention."""
        fine_map = attention.view(-1, neck.shape[2], neck.shape[3])
        coarse_map = functional.avg_pool2d(fine_map[:, None], 2) * 4
        fine_features = (neck.float() * fine_map[:, None]).sum(dim=(2, 3))
        coarse_features = (coarse.float() * coarse_map).sum(dim=(2, 3))
        return torch.cat([fine_features, coarse_features], dim=1)

    def loss(self, images_u8: Tensor, targets: Targets) -> Mapping[str, Tensor]:
        """See `LabelModel.loss`. The target is the first object of each image."""
        logits, boxes, cell_logits = self(images_u8)
        target_boxes, has_box = targets.boxes_xyxy_px[:, 0], targets.has_box[:, 0]
        class_part = classification_loss(logits, targets.label_ids[:, 0], _LABEL_SMOOTHING)
        box_part = box_loss(boxes, target_boxes, has_box, self.input_size_px)
        cell_part = self._cell_loss(cell_logits, target_boxes, has_box)
        total = class_part + box_part + 0.5 * cell_part
        return {LOSS: total, "class_loss": class_part, "box_loss": box_part, "cell_loss": cell_part}

    def _cell_loss(self, cell_logits: Tensor, boxes_xyxy_px: Tensor, has_box: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the attention from a Gaussian in the middle of the box.

        The standard deviations are a quarter of the sides of the box, but at least half a cell, so that the smallest
        object still has a cell.
        """
        centre = (boxes_xyxy_px[:, None, :2] + boxes_xyxy_px[:, None, 2:]) / 2
        deviation = ((boxes_xyxy_px[:, None, 2:] - boxes_xyxy_px[:, None, :2]) / 4).clamp(min=_STRIDE / 2)
        offsets = (self.get_buffer("centres_xy_px")[None] - centre) / deviation
        target = (-0.5 * offsets.square().sum(dim=2)).softmax(dim=1)
        # Without the entropy of the Gaussian the loss of a perfect map would depend on the size of the box.
        per_image = (torch.special.entr(target) * -1 - target * cell_logits.log_softmax(dim=1)).sum(dim=1)
        return torch.where(has_box, per_image, 0).sum() / has_box.sum().clamp(min=1)


def build_localizer(variant: str, num_classes: int, input_size_px: int, weights: str | None) -> LabelModel:
    """See `ModelBuilder`. The variant is the name of a torchvision classification network."""
    if not variant:
        raise UsageError("localizer needs a backbone, such as localizer/mobilenet_v2 or localizer/resnet18")
    if input_size_px <= 0 or input_size_px % _COARSEST_STRIDE:
        nearest = max(1, round(input_size_px / _COARSEST_STRIDE)) * _COARSEST_STRIDE
        raise UsageError(
            f"localizer/{variant} needs an input size that is a multiple of {_COARSEST_STRIDE} pixels, "
            f"found {input_size_px}: use {nearest}"
        )
    return Localizer(build_backbone(variant, weights, (_STRIDE, _COARSEST_STRIDE)), num_classes, input_size_px)
