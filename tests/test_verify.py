"""Sampler.verify: the module's own scores against the engine's."""

from __future__ import annotations

import pytest
import torch
from zoo import Spec, case_of

from pixelfast import sampler as sampler_module


@pytest.mark.parametrize(
    "spec",
    [Spec("PixelCNN", (3, 5, 7), 4, classes=3), Spec("GatedPixelCNN", (1, 5, 7), 2, "bernoulli", None, 5, 3)],
)
def test_a_sampler_verifies(spec):
    assert case_of(spec).sampler().verify() < 1e-4


def test_a_difference_is_found_and_placed(monkeypatch):
    sampler = case_of(Spec("PixelCNN", (3, 5, 7), 4, classes=3)).sampler()
    plain = sampler_module.run

    def tampered(captured, images, conditions) -> torch.Tensor:
        params = plain(captured, images, conditions).clone()
        params[1, 0, 2, 3, 4] += 5.0
        return params

    monkeypatch.setattr(sampler_module, "run", tampered)
    with pytest.raises(ValueError, match=r"differ by .* nats at image 1, pixel \(y=3, x=4\), colour 2: "):
        sampler.verify()
