"""How well one object an image is found: counts that add up over batches and workers. Called by the learner."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from locray.models.contract import NO_OBJECT, PredictedBoxes, Targets

GOOD_IOU = 0.5

CLASS_ACCURACY, MEAN_IOU, LOCALIZATION_ACCURACY = "class_accuracy", "mean_iou", "localization_accuracy"
SCORE = "score"
"""The mean of the three: by it the best epoch is chosen. One alone moves in coarse steps on a small split."""


@dataclass
class Counts:
    """Sums over images that show an object, as float64 (5,): images, right classes, boxes, IoU, right with good IoU."""

    sums: Tensor

    @classmethod
    def zero(cls) -> "Counts":
        """Nothing counted yet."""
        return cls(torch.zeros(5, dtype=torch.float64))

    def add(self, predicted: PredictedBoxes, targets: Targets) -> None:
        """Counts a batch: the first place of the predictions against the first object."""
        wanted, has_box = targets.label_ids[:, 0], targets.has_box[:, 0]
        shows_one = wanted != NO_OBJECT
        right = (predicted.label_ids[:, 0] == wanted) & shows_one
        iou = box_iou(predicted.boxes_xyxy_px[:, 0].float(), targets.boxes_xyxy_px[:, 0].float()).diagonal()
        iou = torch.where(has_box, iou, 0)
        parts = [shows_one.sum(), right.sum(), has_box.sum(), iou.sum(), (right & (iou >= GOOD_IOU)).sum()]
        self.sums += torch.stack([part.double() for part in parts]).cpu()

    def metrics(self) -> dict[str, float]:
        """The averages; 0 where nothing was counted."""
        images, right, boxes, iou, found = self.sums.tolist()
        class_accuracy, mean_iou, localization = right / max(images, 1), iou / max(boxes, 1), found / max(boxes, 1)
        return {
            CLASS_ACCURACY: class_accuracy,
            MEAN_IOU: mean_iou,
            LOCALIZATION_ACCURACY: localization,
            SCORE: (class_accuracy + mean_iou + localization) / 3,
        }
