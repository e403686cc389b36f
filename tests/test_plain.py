"""The plain loop, which the demo and the benchmarks compare with."""

import pytest
import torch

from pixelfast import models, plain


@pytest.mark.parametrize(("channels", "classes", "head"), [(1, None, "categorical"), (3, 4, "bernoulli")])
def test_draw_fills_images_in_order(channels, classes, head):
    model = models.PixelCNN(
        channels=channels, levels=2, hidden=6, layers=1, kernel=3, classes=classes, head=head
    )
    labels = None if classes is None else torch.tensor([1, 3])
    images = torch.full((2, channels, 2, 3), -1)
    drawn = 0
    for _ in plain.draw(model, images, labels):
        drawn += 1
        order = images.permute(0, 2, 3, 1).reshape(2, -1)
        assert (order[:, :drawn] >= 0).all()
        assert (order[:, drawn:] == -1).all()
    assert drawn == channels * 6
    assert images.max() <= 1


def test_draw_follows_the_model():
    model = models.PixelCNN(levels=3, hidden=4, layers=1, kernel=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.last.bias[2] = 50.0
    images = torch.zeros(4, 1, 2, 2, dtype=torch.int64)
    assert len(list(plain.draw(model, images))) == 4
    assert (images == 2).all()


def test_seconds_extrapolates():
    model = models.PixelCNN(levels=2, hidden=4, layers=1, kernel=3)
    step, whole = plain.seconds(model, (2, 1, 4, 5))
    assert step > 0
    assert whole == pytest.approx(20 * step)
    step, whole = plain.seconds(model, (1, 1, 1, 1))
    assert whole == step >= 0
