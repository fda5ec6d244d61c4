"""Parts of models that find one object per image: losses, box coding, and the prediction."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss

from locray.models.interface import NO_OBJECT, PredictedBoxes


class SingleObject(nn.Module):
    """Base of models of one object per image.

    `forward` returns class logits (B, C + 1), boxes (B, 4) in pixels, and possibly more.
    """

    max_detections = 1
    has_static_postprocess = True
    input_size_px: int

    def predict(self, images_u8: Tensor) -> PredictedBoxes:
        """See `LabelModel.predict`; K is 1."""
        return self.network(images_u8)

    def network(self, images_u8: Tensor) -> PredictedBoxes:
        """See `LabelModel.network`: the whole of `predict`."""
        logits, boxes, *_ = self(images_u8)
        return single_prediction(logits, boxes, self.input_size_px)

    def postprocess(self, outputs: Sequence[Tensor]) -> PredictedBoxes:
        """See `LabelModel.postprocess`."""
        return PredictedBoxes(*outputs)


def classification_loss(logits: Tensor, label_ids: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of logits (B, C + 1), the last one for "no object", and label ids (B,)."""
    background = logits.shape[1] - 1
    classes = torch.where(label_ids == NO_OBJECT, background, label_ids)
    return functional.cross_entropy(logits.float(), classes, label_smoothing=label_smoothing)


def box_loss(boxes_xyxy_px: Tensor, targets_xyxy_px: Tensor, has_box: Tensor, input_size_px: int) -> Tensor:
    """Sum of generalised IoU loss (Rezatofighi et al. 2019) and L1 of boxes (B, 4), averaged over those with a target.

    The L1 term keeps a useful gradient where boxes are far apart or objects are small. Without any target in the batch
    the loss and its gradient are zero.
    """
    weights = has_box.float()
    count = weights.sum().clamp(min=1)
    predicted = boxes_xyxy_px.float() / input_size_px
    target = targets_xyxy_px.float() / input_size_px
    per_image = 2 * generalized_box_iou_loss(predicted, target) + 2 * (predicted - target).abs().sum(dim=1)
    return (torch.where(has_box, per_image, 0) * weights).sum() / count


def boxes_of_logits(logits: Tensor, input_size_px: int) -> Tensor:
    """Boxes (B, 4) in pixels, from logits (B, 4) of centre x, centre y, width and height as shares of the input."""
    centre_x, centre_y, width, height = logits.float().sigmoid().unbind(dim=1)
    left, right = centre_x - width / 2, centre_x + width / 2
    top, bottom = centre_y - height / 2, centre_y + height / 2
    return torch.stack([left, top, right, bottom], dim=1) * input_size_px


def single_prediction(logits: Tensor, boxes_xyxy_px: Tensor, input_size_px: int) -> PredictedBoxes:
    """Prediction of one object per image, from logits (B, C + 1) and boxes (B, 4).

    The score is the probability of the most likely class; the probability of "no object" lowers it.
    """
    probabilities = logits.softmax(dim=1)[:, :-1]
    scores, label_ids = probabilities.max(dim=1, keepdim=True)
    return PredictedBoxes(boxes_xyxy_px.clamp(0, input_size_px)[:, None], scores, label_ids)
