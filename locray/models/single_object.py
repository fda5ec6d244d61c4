"""What the models of one object an image share: losses and the form of the prediction. Called by these models."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss

from locray.models.interface import NO_OBJECT, PredictedBoxes


class SingleObject(nn.Module):
    """A model of one object an image, whose `forward` gives class logits (B, C + 1), boxes (B, 4), and perhaps more."""

    max_detections = 1
    input_size_px: int

    def predict(self, images_u8: Tensor) -> PredictedBoxes:
        """See `LabelModel.predict`; one place an image."""
        return self.network(images_u8)

    def network(self, images_u8: Tensor) -> PredictedBoxes:
        """See `LabelModel.network`: all of it."""
        logits, boxes, *_ = self(images_u8)
        return single_prediction(logits, boxes, self.input_size_px)

    def postprocess(self, outputs: Sequence[Tensor]) -> PredictedBoxes:
        """See `LabelModel.postprocess`."""
        return PredictedBoxes(*outputs)


def classification_loss(logits: Tensor, label_ids: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of (B, C + 1) logits, the last one for "no object", against (B,) label ids."""
    background = logits.shape[1] - 1
    classes = torch.where(label_ids == NO_OBJECT, background, label_ids)
    return functional.cross_entropy(logits.float(), classes, label_smoothing=label_smoothing)


def box_loss(boxes_xyxy_px: Tensor, targets_xyxy_px: Tensor, has_box: Tensor, input_size_px: int) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) and L1 of boxes (B, 4), averaged over those with a target.

    The intersection follows the area, which few pixels decide for a small object; the L1 term still pulls
    where the boxes are far apart. Zero, with a gradient of zero, when no image of the batch has a box.
    """
    weights = has_box.float()
    count = weights.sum().clamp(min=1)
    predicted = boxes_xyxy_px.float() / input_size_px
    wanted = targets_xyxy_px.float() / input_size_px
    per_image = 2 * generalized_box_iou_loss(predicted, wanted) + 2 * (predicted - wanted).abs().sum(dim=1)
    return (torch.where(has_box, per_image, 0) * weights).sum() / count


def boxes_of_logits(logits: Tensor, input_size_px: int) -> Tensor:
    """Boxes (B, 4) in pixels of the input, of (B, 4) logits: centre and size as shares of its side."""
    centre_x, centre_y, width, height = logits.float().sigmoid().unbind(dim=1)
    left, right = centre_x - width / 2, centre_x + width / 2
    top, bottom = centre_y - height / 2, centre_y + height / 2
    return torch.stack([left, top, right, bottom], dim=1) * input_size_px


def single_prediction(logits: Tensor, boxes_xyxy_px: Tensor, input_size_px: int) -> PredictedBoxes:
    """The one object of each image, of logits (B, C + 1) and boxes (B, 4).

    The score is the probability of the likeliest class; what goes to "no object" lowers it.
    """
    probabilities = logits.softmax(dim=1)[:, :-1]
    scores, label_ids = probabilities.max(dim=1, keepdim=True)
    return PredictedBoxes(boxes_xyxy_px.clamp(0, input_size_px)[:, None], scores, label_ids)
