"""torchvision, imported without torch's compiler. Imported by `models` before all else.

For one rarely called function, torchvision 0.29 imports `torch._dynamo`, which takes as long as torch itself does: one
to two seconds of a core at the start of each process that labels. Here it gets that function in a form that imports it
when it is called. (`torchvision.transforms.v2`, of which training is made, needs the compiler in any case.)
"""

import sys
from types import ModuleType

_UTILITIES = "torch._dynamo.utils"


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device_type))


_stand_in = ModuleType(_UTILITIES)
_stand_in.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
if sys.modules.setdefault(_UTILITIES, _stand_in) is _stand_in:
    try:
        import torchvision  # noqa: F401 (for its effect)
    finally:
        del sys.modules[_UTILITIES]
