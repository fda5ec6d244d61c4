"""What is counted of a batch: images by outcome, and boxes beside their image. Used by the worker and the preview."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from locray.datasets.records import SkipReason
from locray.errors import ErrorCode
from locray.training.samples import BOXES_OUTSIDE, OUTCOME_NAMES, OUTCOMES

_NAMES = (*OUTCOME_NAMES, str(SkipReason.OUTSIDE_BOX))

_FOR_GOOD = frozenset(map(str, ErrorCode))
"""Not what a store that answers again will give."""

NUM_COUNTS = len(_NAMES)


def counts_of(batch: Mapping[str, Tensor]) -> Tensor:
    """(NUM_COUNTS,) int64: how many images of a batch had each outcome, and how many boxes lay beside theirs."""
    outcomes = torch.bincount(batch[OUTCOMES], minlength=len(OUTCOME_NAMES))
    return torch.cat([outcomes, batch[BOXES_OUTSIDE].sum()[None]])


def unusable(counts: Tensor) -> dict[str, int]:
    """What could not be used, by code or reason."""
    counted = zip(_NAMES[1:], counts.tolist()[1:], strict=True)
    return {name: int(count) for name, count in counted if count}


def complaint(batch: Mapping[str, Any], image_uris: Sequence[str]) -> str | None:
    """What `--strict` has against a batch of these images, of which one can't be used whole; None: nothing."""
    counted = zip(image_uris, batch[OUTCOMES].tolist(), batch[BOXES_OUTSIDE].tolist(), strict=True)
    for uri, outcome, num_outside in counted:
        if OUTCOME_NAMES[outcome] in _FOR_GOOD or num_outside:
            reason = str(SkipReason.OUTSIDE_BOX) if num_outside else OUTCOME_NAMES[outcome]
            return (
                f"{uri}: {reason}. Expected images and boxes that can all be used, as --strict asks for: mend it or "
                "take it out of the split, or leave --strict out"
            )
    return None
