"""`small_cnn`: three convolutions and a dense layer, with a class head and a box head.

The smallest network that classifies and localizes: for thumbnails, demonstrations and tests.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from locray.errors import UsageError
from locray.models.interface import LOSS, LabelModel, Normalise, Targets
from locray.models.single_object import SingleObject, box_loss, boxes_of_logits, classification_loss

DEFAULT_INPUT_SIZE_PX = 32
_MIN_INPUT_SIZE_PX = 18


class SmallCnn(SingleObject):
    """Conv 3x3x32 - pool - Conv 3x3x64 - pool - Conv 3x3x64 - Dense 64 - class head and box head.

    Convolutions are unpadded, as in the introductory texts that describe this network. The heads return logits:
    softmax is applied in the loss and in `predict`.

    Args:
        num_classes: C; one more logit stands for "no object".
        input_size_px: side of the square input.
    """

    def __init__(self, num_classes: int, input_size_px: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_size_px = input_size_px
        self.normalise = Normalise(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(inplace=True),
            nn.Flatten(),
        )
        side = ((input_size_px - 2) // 2 - 2) // 2 - 2
        self.dense = nn.Sequential(nn.Linear(64 * side * side, 64), nn.ReLU(inplace=True))
        self.class_head = nn.Linear(64, num_classes + 1)
        self.box_head = nn.Linear(64, 4)

    def forward(self, images_u8: Tensor) -> tuple[Tensor, Tensor]:
        """Maps images (B, 3, S, S) to class logits (B, C + 1) and boxes (B, 4) in pixels."""
        hidden = self.dense(self.features(self.normalise(images_u8)))
        return self.class_head(hidden).float(), boxes_of_logits(self.box_head(hidden), self.input_size_px)

    def loss(self, images_u8: Tensor, targets: Targets) -> Mapping[str, Tensor]:
        """See `LabelModel.loss`. The target is the first object of each image."""
        logits, boxes = self(images_u8)
        class_part = classification_loss(logits, targets.label_ids[:, 0], label_smoothing=0.0)
        box_part = box_loss(boxes, targets.boxes_xyxy_px[:, 0], targets.has_box[:, 0], self.input_size_px)
        return {LOSS: class_part + box_part, "class_loss": class_part, "box_loss": box_part}


def build_small_cnn(variant: str, num_classes: int, input_size_px: int, weights: str | None) -> LabelModel:
    """See `ModelBuilder`. The family has no variants and no torchvision weights."""
    if variant:
        raise UsageError(f"small_cnn has no variants, found small_cnn/{variant}: use --model small_cnn")
    if weights is not None:
        raise UsageError(
            f"torchvision has no weights for small_cnn, found --weights {weights}: give the folder of an artifact, "
            "leave the option out, or choose localizer/<backbone>"
        )
    if input_size_px < _MIN_INPUT_SIZE_PX:
        raise UsageError(
            f"small_cnn needs an input size of at least {_MIN_INPUT_SIZE_PX} pixels, found {input_size_px}"
        )
    return SmallCnn(num_classes, input_size_px)
