"""One small function per ATen op: from its arguments, as values of `pixelfast.lower`, to its result."""

from . import attention, elementwise, heads, layout, products, recurrent, reshape, rounding

__all__ = ["attention", "elementwise", "heads", "layout", "products", "recurrent", "reshape", "rounding"]
