"""Models: one paper per file."""

from .base import AutoregressiveModel, load
from .gated_pixelcnn import GatedPixelCNN
from .multi_scale import MultiScale
from .pixel_transformer import PixelTransformer
from .pixelcnn import PixelCNN
from .pixelcnn_plus_plus import PixelCNNPlusPlus
from .pixelrnn import DiagonalBiLSTM, LSTM2d, RowLSTM
from .pixelsnail import PixelSNAIL

__all__ = [
    "AutoregressiveModel",
    "DiagonalBiLSTM",
    "GatedPixelCNN",
    "LSTM2d",
    "MultiScale",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "PixelSNAIL",
    "PixelTransformer",
    "RowLSTM",
    "load",
]
