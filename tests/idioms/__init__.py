"""Autoregressive models in the manner of public repositories, one for each way to write one, and broken variants.

Nothing here is the code of others; the ways are. Every module takes `broken`, None or a mistake that somebody makes
sooner or later, by name; a broken module looks at what is not drawn yet.
"""

from __future__ import annotations

import functools

import torch

import pixelfast as pf

from .idiom import CLASSES, Idiom, double
from .masks import (
    Binary,
    ChannelsLast,
    Colours,
    Coordinates,
    Depthwise,
    Dilated,
    EmbeddedColours,
    Normed,
    sequential,
)
from .sequences import Added, Encoder, Filled, Fused, Made, Snail, Waves
from .stacks import CroppedStacks, MaskedStacks, ShiftByCat, ShiftedStreams

__all__ = ["IDIOMS", "Idiom", "double"]

Categorical, Mixture = pf.heads.Categorical, pf.heads.LogisticMixture
old_norm = torch.nn.utils.weight_norm
new_norm = torch.nn.utils.parametrizations.weight_norm
signed, unit = pf.inputs.scaled(-1, 1), pf.inputs.scaled(0, 1)

IDIOMS = {
    "mask as a factor, sigmoid": Idiom(
        Binary,
        ("centre in the first layer", "a row too many", "forgotten mask"),
        (1, 4, 5), pf.heads.Bernoulli(), pf.inputs.floats(), skew=3,
    ),
    "mask in place, sequential": Idiom(
        sequential,
        ("B in place of A", "a column too many", "wrong rows"),
        (1, 5, 4), Categorical(6), unit, skew=3, last="6",
    ),
    "colours interleaved": Idiom(
        Colours,
        ("colours reversed", "own colour", "open centre", "last layer without mask"),
        (3, 3, 4), Categorical(5, layout="n (k c) h w"), signed, skew=2,
    ),
    "colours in thirds, embedded": Idiom(
        EmbeddedColours,
        ("interleaved", "A sees its colour"),
        (3, 3, 4), Mixture(2, 8, coupled=False, layout="n (c k) h w"), skew=2, spread=0.7,
    ),
    "one-hot, dilated": Idiom(
        Dilated,
        ("centre in the first layer", "a column too many", "forgotten mask"),
        (1, 4, 5), Categorical(4), pf.inputs.one_hot(), skew=2,
    ),
    "coordinates": Idiom(
        Coordinates,
        ("centre in the first layer", "a column too many", "mask of the wrong channel"),
        (1, 4, 5), Categorical(6, layout="n k h w"), signed, skew=2,
    ),
    "depthwise": Idiom(
        Depthwise,
        ("a column too many", "forgotten mask", "the row is not cut"),
        (1, 5, 6), Categorical(4), pf.inputs.normalized(0.4, 0.3), skew=2, spread=1.2,
    ),
    "cropped stacks, embedded": Idiom(
        CroppedStacks,
        ("rows are not made causal", "columns are not made causal", "crop on the wrong side"),
        (1, 4, 4), Categorical(5), classes=CLASSES, skew=4, last="last.2",
    ),
    "masked stacks, class biases": Idiom(
        MaskedStacks,
        ("vertical stack sees its row", "horizontal stack sees its pixel", "horizontal flows into vertical"),
        (1, 4, 5), Categorical(4), signed, CLASSES, skew=5,
    ),
    "shifted streams, old weight norm": Idiom(
        functools.partial(ShiftedStreams, colours=3, outputs=20, wn=old_norm, strided=False),
        ("no shift down", "no shift right", "padded below"),
        (3, 3, 4), Mixture(2, 8), signed, skew=4, spread=0.7,
    ),
    "strided streams, new weight norm": Idiom(
        functools.partial(ShiftedStreams, colours=1, outputs=6, wn=new_norm, strided=True),
        ("no shift down", "no shift right", "stride padded below", "cropped on the wrong side"),
        (1, 4, 4), Mixture(2, 8), signed, skew=4, spread=0.7,
    ),
    "shift by cat": Idiom(
        ShiftByCat,
        ("shift up", "no shift right"),
        (1, 4, 4), Categorical(5), signed, skew=2,
    ),
    "channels last": Idiom(
        ChannelsLast,
        ("no shift", "shift to the left", "a colour sees itself"),
        (2, 3, 4), Categorical(5), unit, skew=2,
    ),
    "channels last, normed": Idiom(
        Normed,
        ("centre in the first layer", "a column too many", "forgotten mask"),
        (1, 3, 4), Categorical(5), signed, skew=2,
    ),
    "convolutions over a sequence": Idiom(
        Waves,
        ("tokens are not shifted", "same padding", "chomped on the left"),
        (1, 3, 4), Categorical(5), signed, skew=4,
    ),
    "transformer, filled scores": Idiom(
        Filled,
        ("tokens are not shifted", "mask off by one", "forgotten mask"),
        (1, 3, 4), Categorical(5), skew=4,
    ),
    "transformer, added mask": Idiom(
        Added,
        ("tokens are not shifted", "mask off by one", "forgotten mask"),
        (1, 3, 4), Categorical(5), skew=4,
    ),
    "transformer, fused attention": Idiom(
        Fused,
        ("tokens are not shifted", "not causal", "colours reversed"),
        (3, 2, 3), Categorical(5), skew=3,
    ),
    "transformer, PyTorch's encoder": Idiom(
        Encoder,
        ("tokens are not shifted", "mask off by one", "forgotten mask"),
        (1, 3, 4), Categorical(5), skew=4,
    ),
    "attention between convolutions": Idiom(
        Snail,
        ("mask with its diagonal", "mask off by one"),
        (1, 3, 4), Categorical(5), signed, skew=4,
    ),
    "masked linear layers": Idiom(
        Made,
        ("outputs see their input", "mask transposed", "forgotten mask"),
        (1, 3, 4), pf.heads.Bernoulli(), pf.inputs.floats(), skew=4, last="net.4",
    ),
}  # fmt: skip
