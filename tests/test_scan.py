"""The recurrent op: equal to its twin, which goes from position to position, forward and backward."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import pixelfast as pf
from pixelfast import scan as L

OP = torch.ops.pixelfast.lstm_scan.default
# Hidden neighbours and cells, as (dy, dx).
SCANS = {
    "row": ([(-1, -1), (-1, 0), (-1, 1)], [(-1, 0)]),
    "row, far": ([(-1, 2), (-1, -3)], [(-1, 1)]),
    "column": ([(0, -1)], [(0, -1)]),
    "column, from the right": ([(1, 1), (0, 1)], [(0, 1)]),
    "row, from below": ([(1, 0)], [(1, 0), (1, 1)]),
    "diagonal": ([(-1, 0), (0, -1)], [(0, -1)]),
    "diagonal, from the right": ([(-1, 0), (0, 1)], [(0, 1)]),
    "diagonal, from the last pixel": ([(1, 0), (0, 1)], [(0, 1), (1, 0)]),
    "two cells": ([(-1, 0), (0, -1)], [(-1, 0), (0, -1)]),
}
SIZES = [(1, 1), (1, 5), (5, 1), (4, 6), (6, 3)]


def arguments(scan: str, height: int, width: int, *, edge: bool = True, n: int = 2, size: int = 3, **kind):
    hidden, cells = SCANS[scan]
    generator = torch.Generator().manual_seed(0)
    gates = (3 + len(cells)) * size
    kind = {"dtype": torch.double} | kind

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, **kind).requires_grad_()

    given = [leaf(n, gates, height, width), leaf(len(hidden), gates, size), leaf(2, size) if edge else None]
    return given, hidden, cells


def both(scan: str, height: int, width: int, **options) -> list[list[Tensor]]:
    """The result and the gradients, of the op and of the twin."""
    (gates, weight, edge), hidden, cells = arguments(scan, height, width, **options)
    inputs = [t for t in (gates, weight, edge) if t is not None]
    found = []
    for result in (
        pf.lstm_scan(gates, weight, hidden=hidden, cells=cells, edge=edge),
        L.decomposed(gates, weight, edge, sum(hidden, ()), sum(cells, ())),
    ):
        seed = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
        grads = torch.autograd.grad(result, inputs, seed, materialize_grads=True)
        found.append([result.detach(), *grads])
    return found


@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("scan", SCANS)
def test_equal_to_the_twin(scan, size, edge):
    op, twin = both(scan, *size, edge=edge)
    for a, b in zip(op, twin, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scan", ["row", "diagonal, from the right", "two cells"])
def test_gradients_are_derivatives(scan):
    (gates, weight, edge), hidden, cells = arguments(scan, 2, 3, n=1, size=2)

    def scanned(*given):
        return pf.lstm_scan(given[0], given[1], hidden=hidden, cells=cells, edge=given[2])

    assert torch.autograd.gradcheck(scanned, (gates, weight, edge))


@pytest.mark.parametrize("scan", SCANS)
def test_the_op_is_a_good_citizen(scan):
    (gates, weight, edge), hidden, cells = arguments(scan, 3, 4, dtype=torch.float32)
    torch.library.opcheck(OP, (gates, weight, edge, sum(hidden, ()), sum(cells, ())))


@pytest.mark.parametrize("scan", ["row", "diagonal"])
def test_layouts(scan):
    (gates, weight, edge), hidden, cells = arguments(scan, 4, 5)
    options = {"hidden": hidden, "cells": cells, "edge": edge}
    want = pf.lstm_scan(gates, weight, **options)
    assert want.is_contiguous()
    last = pf.lstm_scan(gates.contiguous(memory_format=torch.channels_last), weight, **options)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, want)
    odd = gates.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(pf.lstm_scan(odd, weight, **options), want)


def test_an_empty_batch():
    (gates, weight, edge), hidden, cells = arguments("row", 3, 4, n=0)
    found = pf.lstm_scan(gates, weight, hidden=hidden, cells=cells, edge=edge)
    assert found.shape == (0, 3, 3, 4)
    (of_weight,) = torch.autograd.grad(found.sum(), weight)
    assert torch.equal(of_weight, torch.zeros_like(weight))


def test_autocast_works_in_float32():
    (gates, weight, edge), hidden, cells = arguments("row", 3, 4, dtype=torch.float32)
    options = {"hidden": hidden, "cells": cells, "edge": edge}
    with torch.autocast("cpu", torch.bfloat16):
        found = pf.lstm_scan(gates.bfloat16(), weight, **options)
    assert found.dtype == torch.float32
    assert torch.equal(found, pf.lstm_scan(gates.bfloat16().float(), weight, **options))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 8, 1)
        self.weight = nn.Parameter(torch.randn(2, 8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return pf.lstm_scan(self.conv(x), self.weight, hidden=[(-1, 0), (0, -1)], cells=[(0, -1)])


def test_compile_and_export():
    layer, x = Layer(), torch.randn(2, 1, 3, 4)
    want = layer(x)
    (gradient,) = torch.autograd.grad(want.sum(), layer.weight)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), want)
    assert torch.equal(torch.autograd.grad(compiled(x).sum(), layer.weight)[0], gradient)
    exported = torch.export.export(layer, (x,))
    assert [n.target for n in exported.graph.nodes].count(OP) == 1
    assert torch.equal(exported.module()(x), want)


def test_gradients_of_gradients_are_refused():
    (gates, weight, _), hidden, cells = arguments("row", 2, 2)
    result = pf.lstm_scan(gates, weight, hidden=hidden, cells=cells)
    with pytest.raises(NotImplementedError, match="no gradients of gradients"):
        torch.autograd.grad(result.sum(), gates, create_graph=True)


GATES, WEIGHT = torch.zeros(1, 8, 3, 3), torch.zeros(1, 8, 2)
ABOVE = [(-1, 0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gates": GATES.long()}, "gates must be float (N, C, H, W), got torch.int64 (1, 8, 3, 3)"),
        ({"gates": GATES[0]}, "gates must be float (N, C, H, W), got torch.float32 (8, 3, 3)"),
        ({"gates": GATES[:, :7]}, "gates must have a multiple of 4 channels (3 + cells), got 7"),
        ({"gates": GATES[:, :, :0]}, "gates must have at least one position, got (1, 8, 0, 3)"),
        ({"weight": WEIGHT[0]}, "weight must be (1, 8, 2), got (8, 2)"),
        (
            {"weight": WEIGHT.double()},
            "weight must be torch.float32 on cpu as the gates are, got torch.float64",
        ),
        ({"edge": torch.zeros(2)}, "edge must be (2, 2), got (2,)"),
        ({"cells": [(-1, 0, 0)]}, "cells must be pairs of integers (dy, dx), got [(-1, 0, 0)]"),
        ({"hidden": [(-1.0, 0)]}, "hidden must be pairs of integers (dy, dx), got [(-1.0, 0)]"),
        ({"cells": []}, "there must be at least one hidden neighbour and one cell"),
        (
            {"cells": [(0, 0)]},
            "the neighbours must all lie in the row, the column or the diagonal before, got (-1, 0), (0, 0)",
        ),
        ({"hidden": [(1, 0)]}, "the row, the column or the diagonal before, got (1, 0), (-1, 0)"),
    ],
)
def test_bad_arguments(change, message):
    given = {"gates": GATES, "weight": WEIGHT, "hidden": ABOVE, "cells": ABOVE} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        pf.lstm_scan(given.pop("gates"), given.pop("weight"), **given)
