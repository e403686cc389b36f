"""pixelfast: exact, fast sampling from autoregressive image models.

>>> import pixelfast as pf
>>> model = pf.models.GatedPixelCNN(classes=10)
>>> sampler = pf.compile(model, shape=(1, 28, 28))
>>> out = sampler.sample(64, labels=3, seed=0)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data, heads, inputs, models, testing, viz
    from ._audit import Audit, audit
    from .capture import CaptureError
    from .causality import CausalityError
    from .heads import bits_per_dim
    from .lower import LoweringError
    from .masked_conv import live_taps, masked_conv2d
    from .models import load
    from .sampler import Sample, Sampler, compile
    from .scan import lstm_scan

__version__ = "0.1.0"

# Loaded when first used, so that what needs no torch (`pixelfast --help`) starts without it.
_HOME = {
    "Audit": "_audit",
    "CaptureError": "capture",
    "CausalityError": "causality",
    "LoweringError": "lower",
    "Sample": "sampler",
    "Sampler": "sampler",
    "audit": "_audit",
    "bits_per_dim": "heads",
    "compile": "sampler",
    "live_taps": "masked_conv",
    "load": "models",
    "lstm_scan": "scan",
    "masked_conv2d": "masked_conv",
}

__all__ = [
    "Audit",
    "CaptureError",
    "CausalityError",
    "LoweringError",
    "Sample",
    "Sampler",
    "audit",
    "bits_per_dim",
    "compile",
    "data",
    "heads",
    "inputs",
    "live_taps",
    "load",
    "lstm_scan",
    "masked_conv2d",
    "models",
    "testing",
    "viz",
]


def __getattr__(name: str) -> Any:
    if name in ("data", "heads", "inputs", "models", "testing", "viz"):
        return importlib.import_module(f".{name}", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
