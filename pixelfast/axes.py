"""Axes: which axis of a tensor is which, said in a string such as "n (h w) (c k)" or found out from its shape.

Axes are n (images), k (a sub-pixel's parameters, such as one logit per level), c (colours), h and w. Those in
parentheses are merged into one, the last varying fastest; one of size 1 may be left out, and "1" is an axis of nothing.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence

from torch import Tensor


def arrange(tensor: Tensor, sizes: Mapping[str, int], layout: str | None, where: str) -> Tensor:
    """Return a tensor with the axes of `sizes`, in that order.

    **Arguments:**

    - `tensor`: any shape that holds the axes, in any order, merged or not.
    - `sizes`: size of each axis, in the wanted order.
    - `layout`: the tensor's axes. None finds them out: the wanted order wins where it fits; otherwise only one may.
    - `where`: what messages begin with.

    Raises `ValueError` where the shape is not that of the layout, or of no layout, or of several.
    """
    shape = tuple(tensor.shape)
    order = _find(shape, sizes, where) if layout is None else _read(layout, shape, sizes, where)
    order = "".join(
        sorted(order, key=lambda a: a in "ck" and sizes.get(a, 1) == 1)
    )  # so that n, h and w are together
    whole = [sizes.get(a, 1) for a in order]
    if list(shape) != whole:
        tensor = tensor.reshape(whole)
    wanted = [*sizes, *(a for a in order if a not in sizes)]
    if wanted != list(order):
        tensor = tensor.permute([order.index(a) for a in wanted])
    return tensor if len(wanted) == len(sizes) else tensor.reshape([*sizes.values()])


def _find(shape: Sequence[int], sizes: Mapping[str, int], where: str) -> str:
    """The order of the axes in a tensor of that shape. Images come first, and h stands right before w."""
    wanted = "".join(sizes)
    large = [size for size in sizes.values() if size != 1]
    if [size for size in shape if size != 1] == large:
        return wanted
    blocks = [a for a in wanted.replace("hw", "x") if a != "n"]
    found: dict[str, tuple[str, str]] = {}  # by the order of axes larger than 1, which is what matters
    for each in itertools.permutations(blocks):
        order = "n" + "".join(each).replace("x", "hw")
        spelling = _spell(shape, order, sizes)
        if spelling is not None:
            found.setdefault("".join(a for a in order if sizes[a] != 1), (order, spelling))
    if len(found) == 1:
        return next(iter(found.values()))[0]
    if not found:
        raise ValueError(
            f"{where} params must have shape {tuple(sizes.values())}, got {tuple(shape)}; the axes {_list(sizes)} may "
            "also be in another order, or merged"
        )
    spellings = [f'"{spelling}"' for _, spelling in found.values()]
    raise ValueError(
        f"{where} params of shape {tuple(shape)}, with {_list(sizes)}, may be {' or '.join(spellings)}; pass layout="
    )


def _list(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{a}={size}" for a, size in sizes.items())


def _spell(shape: Sequence[int], order: str, sizes: Mapping[str, int]) -> str | None:
    """The layout that merges the axes, in that order, to that shape; None if there is none.

    Colours may be merged with anything; rows with columns, and both with images.
    """
    rest = [a for a in order if sizes[a] != 1]
    words = []
    for size in shape:
        group: list[str] = []
        while math.prod(sizes[a] for a in group) != size and rest:
            group.append(rest.pop(0))
        apart = {"k", "h"} <= {*group} or {"k", "w"} <= {*group} or {"k", "n"} <= {*group}
        part = len(group) > 1 and "w" in rest and not {*group} <= {"k", "c"}
        if math.prod(sizes[a] for a in group) != size or apart or part:
            return None
        words.append(f"({' '.join(group)})" if len(group) > 1 else "".join(group) or "1")
    return None if rest else " ".join(words)


def _read(layout: str, shape: Sequence[int], sizes: Mapping[str, int], where: str) -> str:
    """The order of the axes that a layout names, and of those of size 1 that it does not."""
    words = [(a or b).split() for a, b in re.findall(r"\(([^()]*)\)|([^\s()]+)", layout)]
    names = [name for word in words for name in word if name != "1"]
    left = re.sub(r"\([^()]*\)|[^\s()]+", "", layout).strip()
    if left or len(set(names)) != len(names) or not set(names) <= set("nkchw"):
        raise ValueError(
            f'{where} layout must name axes among n, k, c, h, w once each, such as "n (c k) h w", got {layout!r}'
        )
    missing = [a for a in sizes if a not in names]
    expected = [math.prod(sizes.get(a, 1) for a in word if a != "1") for word in words]
    if expected != list(shape) or any(sizes[a] != 1 for a in missing):
        raise ValueError(
            f"{where} params must have the layout {layout!r} with {_list(sizes)}, got shape {tuple(shape)}"
        )
    for a in missing:  # beside its neighbour, so that a row of an image stays a row
        beside = {"h": "w", "w": "h"}.get(a)
        at = names.index(beside) + (a == "w") if beside in names else 0 if a == "n" else 1
        names.insert(at, a)
    return "".join(names)
