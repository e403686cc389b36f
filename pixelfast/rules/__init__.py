"""One small function per ATen op: from its arguments, as values of `pixelfast.lower`, to its result."""

from . import elementwise, heads, layout, products

__all__ = ["elementwise", "heads", "layout", "products"]
