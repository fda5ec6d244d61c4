"""What the C library does with the memory of a large tensor that is freed. Called by what predicts on processors."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h."""
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keeps the memory of freed tensors for the next ones, in this process and from now on.

    Left alone, glibc gives that of each large one back to the system, and takes it page by page for the next: a fifth
    of the time of a ResNet-18, and more than a third of that of a MobileNetV2. The process stays as large as it
    was at its largest.

    Returns:
        Whether the C library knows such settings: glibc does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _LARGEST))
