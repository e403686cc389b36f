"""Models: one paper per file."""

from .base import AutoregressiveModel, load
from .gated_pixelcnn import GatedPixelCNN
from .pixelcnn import PixelCNN

__all__ = ["AutoregressiveModel", "GatedPixelCNN", "PixelCNN", "load"]
