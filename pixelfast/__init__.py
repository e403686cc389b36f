"""pixelfast: exact, fast sampling from autoregressive image models.

import pixelfast as pf

model = pf.models.GatedPixelCNN(classes=10)
sampler = pf.compile(model, shape=(1, 28, 28))
out = sampler.sample(64, labels=3, seed=0)
"""

from . import heads, models
from .capture import CaptureError
from .heads import bits_per_dim
from .lower import LoweringError
from .models import load
from .sampler import Sample, Sampler, compile
from .schedule import CausalityError

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "CausalityError",
    "LoweringError",
    "Sample",
    "Sampler",
    "bits_per_dim",
    "compile",
    "heads",
    "load",
    "models",
]
