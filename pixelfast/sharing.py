"""Sharing: a pass that cuts convolutions where what they read at other positions ends.

What several parts of one, as colours, read there is summed once; and hardware that waits long for a position's turn has
less left to do when it comes. No bit of fp32 changes, since a sum goes on in the order that it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .plan import WHOLE, ZERO, Builder, ConvOp, Instruction, MapOp, Op, Plan

LEAST = 64  # channels to sum over that are worth a sum of their own


def share(plan: Plan, *, alone: bool = False, least: int = LEAST) -> Plan:
    """Where a convolution was split, as by colours, sum what all parts read at other positions for all of them at once.

    The sums of the parts go on from there. So neighbours are read once, not once for each colour, and before the first
    colour of a position is drawn. A sum has one order: what is shared is where the sums of all parts begin.

    alone: also of one part. It saves no work, but what is read at other positions is there before a position's turn
    comes, so that fewer multiply-adds are left to wait for. least: channels to sum over that are worth a sum of their
    own.
    """
    found: dict[tuple, list[int]] = {}
    for i, op in enumerate(plan.ops):
        if isinstance(op, ConvOp) and i not in plan.loops and op.phase == WHOLE and op.stride == (1, 1):
            found.setdefault((plan.maps[op.out].home, op.where, op.offsets, op.bias is None), []).append(i)
    ops: dict[int, list[Op]] = {i: [op] for i, op in enumerate(plan.ops)}
    build = Builder()
    for m in plan.maps:
        build.map(m.name, m.height, m.width, m.channels, m.home, m.home_channel)
    for members in found.values():
        parts = [op for op in (plan.ops[i] for i in members) if isinstance(op, ConvOp)]
        n = _taps_in_common(plan, parts, least)
        if n and (len(parts) > 1 or (alone and any(t >= n for t, _ in plan.live_taps(parts[0])))):
            shared, *rest = _shared(plan, parts, n, build)
            for i, op in zip(members, rest, strict=True):
                ops[i] = [op]
            ops[members[0]].insert(0, shared)
    for i in range(len(plan.ops)):
        for op in ops[i]:
            build.add(op)
    return build.plan(plan.shape, plan.levels)


def _taps_in_common(plan: Plan, parts: Sequence[ConvOp], least: int) -> int:
    """How many taps at other positions all parts begin with, reading the same; 0 where it does not pay."""
    depth = 0
    if any((np.diff(op.refs[op.refs != ZERO]) <= 0).any() for op in parts):
        return 0
    for t, offset in enumerate(parts[0].offsets):
        read = [op.refs[np.isin(plan.map_of(op.refs), _sources(plan, op, t))] for op in parts]
        if offset == (0, 0) or not all(np.array_equal(r, read[0]) for r in read):
            break
        depth += len(read[0])
    else:
        t = len(parts[0].offsets)
    return t if depth >= least else 0


def _sources(plan: Plan, op: ConvOp, tap: int) -> list[int]:
    return [m for t, m in plan.live_taps(op) if t == tap]


def _shared(plan: Plan, parts: Sequence[ConvOp], n: int, build: Builder) -> list[Op]:
    """The sum of the first n taps for all parts, then what is left of each."""
    first = parts[0]
    here = plan.maps[first.out]
    refs = np.setdiff1d(np.concatenate([op.refs for op in parts]), [ZERO])  # ascending, as sums are

    def on_all(op: ConvOp) -> np.ndarray:
        weight = np.zeros((n, len(refs), op.products), np.float32)
        weight[:, np.searchsorted(refs, op.refs[op.refs != ZERO])] = op.weight[:n, op.refs != ZERO]
        return weight

    widths = [op.products for op in parts]
    out = build.map(f"{here.name.split('/')[0]}.shared", here.height, here.width, sum(widths))
    bias = None if first.bias is None else np.concatenate([op.bias for op in parts if op.bias is not None])
    weight = np.concatenate([on_all(op) for op in parts], axis=2)
    result: list[Op] = [ConvOp(out, refs, first.offsets[:n], weight, bias, where=first.where)]
    for op, start in zip(parts, np.split(build.refs(out), np.cumsum(widths)[:-1]), strict=True):
        left = replace(op, offsets=op.offsets[n:], weight=op.weight[n:], bias=None, start=start)
        result.append(left if plan.live_taps(left) else _finished(op, start))
    return result


def _finished(op: ConvOp, product: np.ndarray) -> MapOp:
    """What becomes of a product that is there."""
    code = op.code or (Instruction("product", refs=np.arange(op.products)),)
    return MapOp(
        op.out,
        tuple(replace(i, fn="load", refs=product[i.refs]) if i.fn == "product" else i for i in code),
        op.where,
    )
