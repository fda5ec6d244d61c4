"""`small_resnet`: a residual network for thumbnails, with a class head and a box head.

For images of 32x32 pixels, where `small_cnn` is too weak and a backbone made for photographs leaves a single cell.
Eight convolutions arranged as in "ResNet-9" of the CIFAR-10 entries of DAWNBench (Page 2018), a quarter as wide, so
that two cores train it in minutes.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from locray.errors import UsageError
from locray.models.interface import LOSS, LabelModel, Normalise, Targets
from locray.models.single_object import SingleObject, box_loss, boxes_of_logits, classification_loss

DEFAULT_INPUT_SIZE_PX = 32
_CHANNELS = (16, 32, 64, 128)
_STRIDE = 8
_BOX_CHANNELS = 16
_LABEL_SMOOTHING = 0.1
_LOGIT_SCALE = 0.125
"""Scale of the outputs of the heads, as in ResNet-9: keeps softmax and sigmoid out of saturation at the start."""


class SmallResNet(SingleObject):
    """Conv 16 - Conv 32, pool, residual - Conv 64, pool - Conv 128, pool, residual - class head and box head.

    Convolutions are 3x3, padded, with batch norm. The class head reads the maximum of each channel, the box head all
    cells.

    Args:
        num_classes: C; one more logit stands for "no object".
        input_size_px: side of the square input, a multiple of 8.
    """

    def __init__(self, num_classes: int, input_size_px: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_size_px = input_size_px
        self.normalise = Normalise(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        first, second, third, last = _CHANNELS
        self.features = nn.Sequential(
            _convolution(3, first),
            _pooled_convolution(first, second),
            _Residual(second),
            _pooled_convolution(second, third),
            _pooled_convolution(third, last),
            _Residual(last),
        )
        side = input_size_px // _STRIDE
        self.class_head = nn.Linear(last, num_classes + 1, bias=False)
        self.box_head = nn.Sequential(
            nn.Conv2d(last, _BOX_CHANNELS, 1, bias=False),
            nn.BatchNorm2d(_BOX_CHANNELS),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(_BOX_CHANNELS * side * side, 4),
        )

    def forward(self, images_u8: Tensor) -> tuple[Tensor, Tensor]:
        """Maps images (B, 3, S, S) to class logits (B, C + 1) and boxes (B, 4) in pixels."""
        cells = self.features(self.normalise(images_u8))
        logits = self.class_head(cells.amax(dim=(2, 3))).float() * _LOGIT_SCALE
        boxes = boxes_of_logits(self.box_head(cells) * _LOGIT_SCALE, self.input_size_px)
        return logits, boxes

    def loss(self, images_u8: Tensor, targets: Targets) -> Mapping[str, Tensor]:
        """See `LabelModel.loss`. The target is the first object of each image."""
        logits, boxes = self(images_u8)
        class_part = classification_loss(logits, targets.label_ids[:, 0], _LABEL_SMOOTHING)
        box_part = box_loss(boxes, targets.boxes_xyxy_px[:, 0], targets.has_box[:, 0], self.input_size_px)
        return {LOSS: class_part + box_part, "class_loss": class_part, "box_loss": box_part}


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, cells: Tensor) -> Tensor:
        residual: Tensor = self.layers(cells)
        return cells + residual


def _convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def _pooled_convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    # Pooling first leaves a quarter of the values to normalise.
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def build_small_resnet(variant: str, num_classes: int, input_size_px: int, weights: str | None) -> LabelModel:
    """See `ModelBuilder`. The family has no variants and no torchvision weights."""
    if variant:
        raise UsageError(f"small_resnet has no variants, found small_resnet/{variant}: use --model small_resnet")
    if weights is not None:
        raise UsageError(
            f"torchvision has no weights for small_resnet, found --weights {weights}: give the folder of an artifact, "
            "leave the option out, or choose localizer/<backbone>"
        )
    if input_size_px < 2 * _STRIDE or input_size_px % _STRIDE:
        nearest = max(2, round(input_size_px / _STRIDE)) * _STRIDE
        raise UsageError(
            f"small_resnet takes an input size that is a multiple of {_STRIDE} pixels, from {2 * _STRIDE} on, "
            f"found {input_size_px}: the nearest one is {nearest}"
        )
    return SmallResNet(num_classes, input_size_px)
