"""The receptive field read off a plan is where the network's gradient is not zero."""

import numpy as np
import pytest
import torch
from random_networks import FIXED, fixed
from zoo import SPECS, case_of, dependence, pyramid

import pixelfast as pf
from pixelfast.receptive import receptive_field, seeing, seen_by


@pytest.mark.parametrize("kind", [pf.models.PixelCNN, pf.models.GatedPixelCNN])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_where_the_gradient_is(kind, channels):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = kind(channels=channels, levels=5, hidden=12, layers=2, kernel=5)
        model.last.weight.data.abs_()  # so that no sum over outputs cancels
        x = torch.rand(8, channels, 9, 11, dtype=torch.float64, requires_grad=True)
    plan = pf.compile(model, shape=(channels, 9, 11)).schedule.plan
    output = model.double().network(x, None)
    for pixel in [(8, 5), (3, 1), (5, 10), (0, 0)]:
        (gradient,) = torch.autograd.grad(output[:, :, *pixel].sum(), x, retain_graph=True)
        field = receptive_field(plan, pixel)
        assert field.pixel == pixel
        assert (field.mask == (gradient != 0).any(dim=(0, 1)).numpy()).all()


def test_its_numbers():
    model = pf.models.PixelCNN(levels=2, hidden=4, layers=2, kernel=3)
    field = receptive_field(pf.compile(model, shape=(1, 6, 20)).schedule.plan)
    assert field.pixel == (5, 10)
    assert (field.up, field.left, field.right) == (3, 3, 3)
    assert field.before == 5 * 20 + 10
    assert field.reach.sum() == 3 * 7 + 3
    assert field.blind == 1 - 21 / 24
    assert field.seen == field.mask.sum() == 3 + 5 + 6 + 7  # the blind spot, upper right, grows by one a row
    assert str(field) == "3 up, 3 left, 3 right of pixel (5, 10); it sees 21 of the 110 pixels before it"


def test_the_first_pixel_sees_nothing():
    model = pf.models.PixelCNN(levels=2, hidden=4, layers=1, kernel=3)
    plan = pf.compile(model, shape=(1, 2, 2)).schedule.plan
    field = receptive_field(plan, (0, 0))
    assert (field.up, field.left, field.right, field.seen, field.before) == (0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match=r"\[receptive_field\] pixel must lie in 2 x 2, got \(2, 0\)"):
        receptive_field(plan, (2, 0))


@pytest.mark.parametrize("case", [case_of(SPECS[3]), case_of(SPECS[9]), pyramid(), fixed(FIXED[0])], ids=str)
def test_what_sees_and_what_is_seen_are_the_dependence_that_is_measured(case):
    every = list(np.ndindex(*case.shape))
    measured = dependence(case)
    assert (seen_by(case.plan, every).reshape(len(every), -1) == measured).all()
    assert (seeing(case.plan, every).reshape(len(every), -1) == measured.T).all()
