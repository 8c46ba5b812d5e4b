"""Make torchvision importable beside a CPU-only torch.

The torchvision wheels of the package index are built for CUDA. Beside a CPU build of torch their
compiled part fails to load, silently, and torchvision then stumbles over its own missing operators
``nms`` and ``qnms`` when it registers their shapes. Declaring the two is enough for everything but
box operations, which nothing here uses. timm, lpips and clean-fid import torchvision at their top.
"""

import sys

import torch

_library: torch.library.Library | None = None


def apply() -> None:
    """Declare the missing operators, once, if torch has no CUDA and torchvision is not imported.

    Call it before the first import of anything that imports torchvision.
    """
    global _library
    if _library is not None or torch.version.cuda is not None or "torchvision" in sys.modules:
        return
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        signature = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(signature)  # type: ignore[no-untyped-call]
    _library = library  # the declaration lives as long as this reference
