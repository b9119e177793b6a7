"""W8A8 post-training quantization of vision-language models for Ascend NPUs.

from quant import Calibrator, QuantConfig
Calibrator(SRC, QuantConfig(anti_method="m4"), "calibImages").run().save(OUT)
"""

from .base.config import QuantConfig
from .base.errors import QuantError, UsageError
from .base.version import VERSION as __version__

__all__ = ["Calibrator", "QuantConfig", "QuantError", "UsageError", "__version__"]


def __getattr__(name: str):
    if name == "Calibrator":  # on first use: it imports torch
        from .library import Calibrator

        return Calibrator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
