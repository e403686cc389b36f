"""One small function per ATen op: from its arguments, as values of `pixelfast.lower`, to its result."""

from . import (
    attention,
    convolutions,
    elementwise,
    functions,
    heads,
    layout,
    masks,
    norms,
    products,
    recurrent,
    reductions,
    resample,
    reshape,
    rounding,
    scatter,
)

__all__ = [
    "attention",
    "convolutions",
    "elementwise",
    "functions",
    "heads",
    "layout",
    "masks",
    "norms",
    "products",
    "recurrent",
    "reductions",
    "resample",
    "reshape",
    "rounding",
    "scatter",
]
