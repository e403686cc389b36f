"""Settings that all tests share."""

from __future__ import annotations

import hypothesis
import torch

# The tests' models are tiny; two thread pools that fight cost more than they bring.
torch.set_num_threads(1)

hypothesis.settings.register_profile("pixelfast", deadline=None, derandomize=True)
hypothesis.settings.load_profile("pixelfast")
