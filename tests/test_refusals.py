"""What the rules refuse, and how they say so."""

from __future__ import annotations

import pytest
import torch
from parts import ALL, CLASSES, HEIGHT, WIDTH, Parts, like, set_slice
from torch import nn
from torch.nn import functional as F
from zoo import scorer

import pixelfast as pf

MIXES = "Parts gives for an image, run again beside another, .*: forward mixes the images of a batch"
ERRORS = {
    "norm over positions": (
        lambda m, h, i: F.layer_norm(h, (4, HEIGHT, WIDTH)),
        r"of \(N, 4, 3, 4\) in module .*: a norm over axes cyx of a tensor of axes ncyx joins positions or images, of "
        "which some are not drawn yet; supported are channels",
    ),
    "group norm": (lambda m, h, i: F.group_norm(h, 2), "a norm over axes cyx of a tensor of axes ncyx joins"),
    "instance norm": (lambda m, h, i: F.instance_norm(h), "a norm over axes yx of a tensor of axes ncyx joins"),
    "mean over positions": (lambda m, h, i: h - h.mean((2, 3), keepdim=True), "a mean over axes yx of a tensor"),
    "sum over images": (lambda m, h, i: h - h.sum(0), MIXES),
    "variance": (lambda m, h, i: h / h.var((1, 2), keepdim=True), "a variance over axes cy of a tensor"),
    "maximum": (lambda m, h, i: h - h.amax(3, keepdim=True), "a maximum over axes x of a tensor"),
    "minimum": (lambda m, h, i: h - h.amin(3, keepdim=True), "a minimum over axes x of a tensor"),
    "product": (lambda m, h, i: h - h.prod(3, keepdim=True), "a product over axes x of a tensor"),
    "norm": (lambda m, h, i: F.normalize(h, dim=2), "a norm over axes y of a tensor"),
    "cumulative sum": (lambda m, h, i: h.cumsum(2), "a sum over axes y of a tensor"),
    "softmax": (lambda m, h, i: h.softmax(3), "a softmax over axes x of a tensor"),
    "everything": (lambda m, h, i: h - h.mean(), MIXES),
    "order of a norm": (lambda m, h, i: h.norm(0, dim=1, keepdim=True), r"a norm of order 0.*; supported are positive"),
    "high power": (lambda m, h, i: h**65, "the power 65; supported are integers up to 64, and fractions"),
    "power of a negative number": (lambda m, h, i: (-2.0) ** h, r"powers of -2\.0; supported are those of positive"),
    "bits": (lambda m, h, i: h.long().bitwise_and(1 - i).to(h.dtype), "it takes the bits of integers of a feature"),
    "volumes": (
        lambda m, h, i: F.conv3d(h.view(-1, 2, 2, HEIGHT, WIDTH), like(h, 2, 1, 1, 1, 1), groups=2).flatten(1, 2),
        "a convolution of volumes over axes nccyx in 2 groups; supported is nccyx in 1",
    ),
    "convolution along channels": (
        lambda m, h, i: F.conv1d(h[:, :, 0].mT, like(h, 4, 4, 1)).mT[:, :, None].expand(h.shape),
        "a convolution over axes nxc; supported is ncx",
    ),
    "transposed convolution of channels last": (
        lambda m, h, i: F.conv_transpose2d(h.movedim(1, 2), like(h, 3, 3, 1, 1)).movedim(2, 1),
        "a transposed convolution over axes nycx; supported is ncyx",
    ),
    "odd enlargement": (
        lambda m, h, i: F.interpolate(h, size=(4, 6))[:, :, :HEIGHT, :WIDTH],
        "it enlarges 3 x 4 to 4 x 6; supported are integer factors",
    ),
    "pool": (
        lambda m, h, i: F.max_pool2d(h, 2, ceil_mode=True).repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :3],
        "a pool of windows that leave the grid; supported is ceil_mode=False",
    ),
    "average pool": (
        lambda m, h, i: F.avg_pool2d(h, 2, ceil_mode=True).repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :3],
        "a pool of windows that leave the grid; supported is ceil_mode=False",
    ),
    "shuffle of channels last": (
        lambda m, h, i: F.pixel_shuffle(F.pad(h, (0, 0, 0, 1)).transpose(1, 2), 2)[:, :, :HEIGHT, :WIDTH],
        "a shuffle over axes nycx; supported is ncyx",
    ),
    "windows of images": (lambda m, h, i: h.unfold(0, 1, 1)[..., 0], "windows along n; supported are channels and"),
    "several indices": (
        lambda m, h, i: h[:, [[0, 1], [1, 0]]].flatten(1, 2), "an index of several axes, or by what is not a constant"
    ),
    "written by indices": (
        lambda m, h, i: torch.index_put(h, (torch.tensor([0]), torch.tensor([1])), torch.tensor(0.0, dtype=h.dtype)),
        "it overwrites what indices name; supported is one number where a constant mask is true",
    ),
    "steps that do not fit": (
        lambda m, h, i: set_slice(h, 0.0, ALL, ALL, slice(0, None, 2)),
        "overwrites 2 of 3 positions in steps of 2; supported are all of a phase",
    ),
    "images overwritten": (lambda m, h, i: set_slice(h, 0.0, slice(0, 1)), "slices the batch"),
    "rolled flat": (lambda m, h, i: h.roll(1), MIXES),
    "rolled images": (lambda m, h, i: h.roll(1, 0), MIXES),
    "repeated rows": (
        lambda m, h, i: h.repeat(1, 1, 2, 1)[:, :, :HEIGHT], "it repeats the y axis; supported are channels"
    ),
    "entries of everything": (
        lambda m, h, i: h.repeat_interleave(2).view(-1, 8, HEIGHT, WIDTH), "it repeats entries of the flattened tensor"
    ),
    "stacks of matrices": (
        lambda m, h, i: h @ like(h, 2, 1, WIDTH, WIDTH), "matrices that differ along axis n of a tensor of axes"
    ),
    "filled from the image": (lambda m, h, i: set_slice(h, h[0, 0, 0, 0], ALL, 1), "selects one entry of the n axis"),
    "concatenated images": (lambda m, h, i: torch.cat([h[:, :2], h[:, 2:]], 0).view(h.shape), MIXES),
    "circular": (lambda m, h, i: F.pad(h, (1, 1, 0, 0), "circular")[..., 1:-1], "pads with mode 'circular': copies of"),
    "uint8": (
        lambda m, h, i: h + (F.pad(i.byte(), (1, 0))[..., :-1] - i.byte()).to(h.dtype),
        "arithmetic of torch.uint8, which wraps",
    ),
    "softplus": (lambda m, h, i: F.softplus(h, threshold=1), "softplus with threshold 1"),
    "attention along rows": (
        lambda m, h, i: (
            (h.permute(0, 2, 3, 1) @ h.permute(0, 2, 1, 3)).softmax(-1) @ h.permute(0, 2, 3, 1)
        ).permute(0, 3, 1, 2),
        "a product of tensors of axes nyxc and nycx that both depend on the image; supported is attention",
    ),
    "tangent": (lambda m, h, i: h.tan(), r"aten\.tan\.default of \(N, 4, 3, 4\) in module .*there is no rule for it"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_planned_is_refused(name):
    part, match = ERRORS[name]
    module = Parts({name: part})
    with pytest.raises(pf.CaptureError if match == MIXES else pf.LoweringError, match=match):
        scorer(module, module.shape)


class Layered(nn.Module):
    """A layer of PyTorch where it cannot be planned."""

    head = pf.heads.Categorical(4)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(HEIGHT, 4, 1)

    def forward(self, images):
        return self.conv(images.float().transpose(1, 2))


def test_the_line_that_is_named_is_the_models_own():
    with pytest.raises(pf.LoweringError, match=r"in module 'conv' .*axes nycx; supported are ncyx") as caught:
        scorer(Layered(), (2, HEIGHT, WIDTH))
    assert "test_refusals.py" in str(caught.value).splitlines()[-1]


OF_CONDITIONS = {
    "row": (
        lambda m, h, i, y: set_slice(h, m.embed(y)[:, :, None], ALL, ALL, 0),
        "it overwrites one entry of an axis with a condition; supported are slices",
    ),
    "indices": (lambda m, h, i, y: h.index_select(1, y), "the indices depend on the image or on a condition"),
    "index": (
        lambda m, h, i, y: h[:, y],
        "an index of several axes, or by what is not a constant row of integers",
    ),
    "number": (
        lambda m, h, i, y: h + h.detach().clone().fill_(y.sum()),
        "it fills a tensor with a number that depends on the image or on a condition",
    ),
    "matrix": (
        lambda m, h, i, y: h @ m.grid(y).view(-1, 4, HEIGHT, WIDTH).mT @ h[:, :, :3],
        "a product of a tensor of axes ncyx with a matrix that depends on a condition, of shape",
    ),
}


@pytest.mark.parametrize("name", OF_CONDITIONS)
def test_what_conditions_cannot_do_is_refused(name):
    part, match = OF_CONDITIONS[name]
    module = Parts({name: part}, classes=CLASSES)
    with pytest.raises(pf.LoweringError, match=match):
        scorer(module, module.shape)
