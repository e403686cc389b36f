"""pixelfast: exact, fast sampling from autoregressive image models."""

__version__ = "0.1.0"
