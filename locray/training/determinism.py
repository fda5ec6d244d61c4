"""How a GPU gives the same weights again. Called where a worker begins, before it computes anything."""

import os

import torch

_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG"
_EIGHT_OF_4_MIB = ":4096:8"


def repeat_exactly() -> None:
    """Has this process choose, for the same numbers in the same order, the same kernels with the same sums.

    Left alone, cuDNN times its algorithms and takes the quickest of the day, some backward passes add in the order in
    which threads are done, and cuBLAS splits sums by the workspace that is free. What torch has no such kernel for
    still runs, with a warning: a run on that is not exact rather than not at all. On a processor nothing changes.

    With several workers the order in which gradients are added is not up to this process.

    cuBLAS reads its environment variable when it is first used, so that call comes after this one. A value that the
    user has set stays.
    """
    os.environ.setdefault(_WORKSPACES, _EIGHT_OF_4_MIB)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Torch would also fill all new memory, to catch programs that read it before they have written it: a pass more.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
