"""Models: one paper per file."""

from .base import AutoregressiveModel, load
from .gated_pixelcnn import GatedPixelCNN
from .pixelcnn import PixelCNN
from .pixelcnn_plus_plus import PixelCNNPlusPlus

__all__ = ["AutoregressiveModel", "GatedPixelCNN", "PixelCNN", "PixelCNNPlusPlus", "load"]
