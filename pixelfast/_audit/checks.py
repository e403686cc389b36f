"""The rest of an audit: the batch, dropout, sizes, scores and cost."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..capture import forked, unvalidated
from ..prepare import Prepared
from ..sampler import Sampler
from .effects import Manner, Runner, mixing_in_training, said
from .results import Batch, Chance, Cost, Scores, Size

kPasses = 3  # of which the fastest counts
_DROPOUT = nn.modules.dropout._DropoutNd
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


def batch(module: nn.Module, prepared: Prepared, manner: Manner) -> Batch:
    norms = [(name, part) for name, part in module.named_modules() if isinstance(part, _BATCH_NORM)]
    unfrozen = tuple(name for name, part in norms if part.running_mean is None)
    training = None if 2 in manner.breaks else mixing_in_training(prepared)
    return Batch(tuple(name for name, _ in norms), unfrozen, training, manner.mixes)


def chance(module: nn.Module, manner: Manner) -> Chance:
    parts = module.named_modules()
    live = tuple(name for name, p in parts if isinstance(p, _DROPOUT) and p.training and p.p > 0)
    return Chance(manner.random, manner.sources, module.training, live)


def sizes(prepared: Prepared, manner: Manner) -> tuple[Size, ...]:
    """Run forward on images of other sizes, and on one image."""
    _, height, width = prepared.shape
    n = 1 if 2 in manner.breaks else 2
    wanted = [(1, 1), (7, 7), (height, 2 * width), (2 * height, width), (2 * height, 2 * width)]
    runner = Runner(prepared)
    runner.run(runner.images(n, 0))  # what it keeps for its batch is now of this one
    found = [
        _size(prepared, runner.module, n, *size) for size in dict.fromkeys(wanted) if size != (height, width)
    ]
    return (*found, *(Size(b, height, width, "breaks", said) for b, said in manner.breaks.items()))


def _size(prepared: Prepared, module: Any, n: int, height: int, width: int) -> Size:
    images = torch.zeros((n, prepared.shape[0], height, width), dtype=torch.int64)
    given = {key: value[:1].expand(n, *value.shape[1:]) for key, value in prepared.examples.items()}
    with torch.no_grad(), unvalidated(), forked():
        try:
            output = module.module(images, **given)
        except Exception as error:
            return Size(n, height, width, "breaks", said(error))
        try:
            module.read(output, images)
        except Exception as error:
            shape = f"{tuple(output.shape)}" if isinstance(output, Tensor) else said(error)
            return Size(n, height, width, "wrong shape", shape)
    return Size(n, height, width, "ok")


def scores(sampler: Sampler, prepared: Prepared) -> Scores:
    """Whether scoring agrees with drawing, to the bit, and with the module, within rounding."""
    given = {key: value[0] for key, value in prepared.examples.items()}
    try:
        drawn = sampler.sample(2, conditions=given)
    except ValueError as error:  # a distribution of NaNs
        return Scores(None, False, said(error))
    same = torch.equal(sampler.log_prob(drawn.images, conditions=given), drawn.log_prob)
    try:
        return Scores(sampler.verify(), same)
    except ValueError as error:
        return Scores(None, same, said(error))


def cost(prepared: Prepared, manner: Manner, sampler: Sampler | None) -> Cost:
    """Count, and time a pass of the module at batch 1, and one drawn image."""
    runner = Runner(prepared)
    images = runner.images(manner.least, 0)

    def forward() -> None:
        with torch.no_grad(), unvalidated(), forked():
            runner.forward(images)

    seconds = _fastest(forward)
    with FlopCounterMode(display=False) as counter:
        forward()
    colours, height, width = prepared.shape
    dense = counter.get_total_flops() // 2 // manner.least
    plain = Cost(colours * height * width, dense, seconds)
    if sampler is None:
        return plain
    condition = {key: value[0] for key, value in prepared.examples.items()}
    explained = sampler.explain()
    drawn = _fastest(lambda: sampler.sample(1, conditions=condition))
    return Cost(plain.passes, dense, seconds, explained.multiply_adds, explained.launches, drawn)


def _fastest(run: Any) -> float:
    times = []
    for _ in range(kPasses):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)  # what disturbs a measurement only ever makes it longer
