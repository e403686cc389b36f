"""`pixelfast audit`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import heads, inputs, models
from .._files import check_writable, replacing
from ..heads import Head
from . import audit

_MIXTURE = "logistic-mixture"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser._negative_number_matcher = re.compile(r"-\d")  # or else -1,1 would be taken for an option
    parser.add_argument(
        "model", help="package.module:factory, called without arguments, or a folder that train wrote"
    )
    parser.add_argument(
        "--shape", type=_shape, metavar="C,H,W", help="of an image, if the folder does not say it"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="weights: .safetensors, or what torch.save wrote, loaded without code",
    )
    parser.add_argument(
        "--head",
        type=_head,
        metavar="HEAD",
        help="categorical:LEVELS, bernoulli or logistic-mixture:M[:LEVELS] (the model's own, or a guess)",
    )
    parser.add_argument(
        "--scaled",
        type=_scaled,
        metavar="LOW,HIGH",
        help="forward takes levels as floats in between (levels)",
    )
    parser.add_argument(
        "--conditions", type=_conditions, metavar="NAME:DTYPE,...", help="forward's further arguments"
    )
    parser.add_argument(
        "--output", metavar="KEY", help="which of what forward returns: an index, key or attribute"
    )
    parser.add_argument("--out", metavar="FILE", help="write a picture of the receptive field")
    parser.add_argument("--json", metavar="FILE", help="write what was found as JSON")
    parser.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="show a progress bar (on a terminal)"
    )


def run(options: argparse.Namespace) -> int:
    """Print the report. Returns 1 if there are problems, otherwise 0."""
    for path in (options.out, options.json):
        if path is not None:
            check_writable(path)
    module = _module(options.model)
    if options.checkpoint is not None:
        _load(module, Path(options.checkpoint))
    shape = options.shape or getattr(module, "shape", None)
    if not shape:
        raise ValueError(
            f"{options.model} does not say the shape of its images: give --shape, such as 3,32,32"
        )
    output = options.output
    found = audit(
        module,
        shape,
        head=options.head,
        to_input=options.scaled and inputs.scaled(*options.scaled),
        conditions=options.conditions,
        output=int(output) if output and re.fullmatch(r"-?\d+", output) else output,
        progress=sys.stderr.isatty() if options.progress is None else options.progress,
    )
    if options.out is not None:
        with replacing(options.out) as temporary:
            found.picture().save(temporary)
    if options.json is not None:
        with replacing(options.json) as temporary:
            temporary.write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    print(found)
    return 0 if found.ok else 1


def _module(name: str) -> nn.Module:
    """What a factory makes, or what a folder holds."""
    if Path(name).is_dir():
        return models.load(name)
    home, _, attribute = name.partition(":")
    if not home or not attribute:
        raise ValueError(f"[audit] the model must be a folder or like package.module:factory, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made: Any = importlib.import_module(home)
    except ImportError as error:
        raise ValueError(f"[audit] cannot import {home!r}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(made, part):
            raise ValueError(f"[audit] {home!r} has no {attribute!r}")
        made = getattr(made, part)
    if not isinstance(made, nn.Module):
        made = made() if callable(made) else made
    if not isinstance(made, nn.Module):
        raise ValueError(f"[audit] {name} must make a torch.nn.Module, got a {type(made).__name__}")
    return made


def _load(module: nn.Module, path: Path) -> None:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            weights: Any = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"[audit] {path} is truncated or no safetensors file ({error})") from error
    else:
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(
                f"[audit] {path} holds more than tensors, or is no checkpoint: {error}"
            ) from error
    if isinstance(weights, dict) and isinstance(weights.get("state_dict"), dict):  # as Lightning writes them
        weights = weights["state_dict"]
    if not isinstance(weights, dict):
        raise ValueError(f"[audit] {path} must hold a state_dict, got a {type(weights).__name__}")
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"[audit] {path} does not fit the module: {error}") from error


# --- options ----------------------------------------------------------------------------------------------------


def _shape(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"[1-9]\d*,[1-9]\d*,[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"must be like 3,32,32, got {text!r}")
    colours, height, width = map(int, text.split(","))
    return colours, height, width


def _head(text: str) -> Head:
    name, *numbers = text.split(":")
    try:
        values = [int(n) for n in numbers]
        if name == "categorical" and len(values) == 1:
            return heads.Categorical(*values)
        if name == "bernoulli" and not values:
            return heads.Bernoulli()
        if name == _MIXTURE and 1 <= len(values) <= 2:
            return heads.LogisticMixture(*values)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, got {text!r}") from error
    raise argparse.ArgumentTypeError(
        f"must be categorical:LEVELS, bernoulli or {_MIXTURE}:M[:LEVELS], got {text!r}"
    )


def _scaled(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be like -1,1, got {text!r}") from None
    return low, high


def _conditions(text: str) -> dict[str, torch.dtype]:
    found = {}
    for word in text.split(","):
        name, _, kind = word.partition(":")
        dtype = getattr(torch, kind, None)
        if not name or not isinstance(dtype, torch.dtype):
            raise argparse.ArgumentTypeError(f"must be like labels:int64,..., got {text!r}")
        found[name] = dtype
    return found
