"""The state of a training run: one step, one checkpoint, and the way back to it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ._files import replacing
from .models import AutoregressiveModel

STATE, RECORD = "state.safetensors", "train.json"


@dataclass
class Run:
    """The state of a training run: what a checkpoint holds."""

    model: AutoregressiveModel
    record: dict[str, Any]
    folder: Path
    images: int
    step: int = 0
    losses: list[float] = field(default_factory=list)  # bits/dim of the steps since the last note

    def __post_init__(self) -> None:
        arguments = self.record["arguments"]
        self.lr, self.amp, self.seed = arguments["lr"], arguments["amp"], arguments["seed"]
        self.batch = arguments["batch"]
        self.per_epoch = math.ceil(self.images / self.batch)
        self.steps = arguments["epochs"] * self.per_epoch
        self.device = next(self.model.parameters()).device
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.lr)
        self.average = AveragedModel(self.model, multi_avg_fn=self._average)
        self._schedule()

    def _average(self, averaged: Any, current: Any, count: Tensor | int) -> None:
        """Average exponentially; over fewer steps in the beginning, to forget the first weights soon."""
        decay = min(self.record["arguments"]["ema"], (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(decay)(averaged, current, count)

    def batches(self) -> Iterator[np.ndarray]:
        """Yield the indices of each step that is left. An epoch's order depends on (seed, epoch) alone."""
        order, epoch_of_order = np.zeros(0, np.int64), -1
        while self.step < self.steps:
            epoch, i = divmod(self.step, self.per_epoch)
            if epoch != epoch_of_order:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.images)
                epoch_of_order = epoch
            yield order[i * self.batch : (i + 1) * self.batch]

    def _schedule(self) -> None:
        warmup = min(500, max(1, self.steps // 50))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup))

        for group in self.optimizer.param_groups:
            group["initial_lr"] = self.lr
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor, last_epoch=self.step - 1)

    def update(self, images: Tensor, labels: Tensor | None) -> None:
        """Take one step."""
        torch.manual_seed(int(np.random.SeedSequence([self.seed, self.step]).generate_state(1)[0]))
        with autocast(self.amp, self.device):
            loss = -self.model.log_prob(images, labels).mean() / images[0].numel()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()
        self.average.update_parameters(self.model)
        self.step += 1
        self.losses.append(loss.item() / math.log(2))
        if not math.isfinite(self.losses[-1]):
            raise ValueError(f"[train] the loss is {self.losses[-1]} at step {self.step}: try a lower lr")

    def note(self) -> float:
        """Add to the history the mean bits/dim of the steps since the last note, and return it."""
        bits = sum(self.losses) / len(self.losses)
        entry = {
            "step": self.step,
            "bits_per_dim": round(bits, 5),
            "seconds": round(self.record["seconds"], 1),
        }
        self.record["history"].append(entry)
        self.losses.clear()
        return bits

    def averaged(self) -> AutoregressiveModel:
        """Return the model of averaged weights, in eval mode."""
        return cast(AutoregressiveModel, self.average.module.eval())

    def save(self) -> None:
        """Write a checkpoint. The state is one file, so it is never half new."""
        self.record["step"], self.record["finished"] = self.step, self.step == self.steps
        tensors = {"averaged": self.average.n_averaged.cpu()}
        for name, value in self.model.state_dict().items():
            tensors[f"weights/{name}"] = value
        for name, value in self.average.module.state_dict().items():
            tensors[f"ema/{name}"] = value
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adam/{name}/{key}"] = value
        metadata = {"record": json.dumps(self.record), "losses": json.dumps(self.losses)}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        with replacing(self.folder / STATE) as temporary:
            save_file(tensors, temporary, metadata)
        self.averaged().save(self.folder)
        with replacing(self.folder / RECORD) as temporary:
            temporary.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")

    def restore(self) -> None:
        """Go back to the checkpoint in the folder."""
        path = self.folder / STATE
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key).to(self.device) for key in file.keys()}  # noqa: SIM118
            record, losses = json.loads(metadata["record"]), json.loads(metadata["losses"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"[train] {path} is truncated or no training state ({error})") from error
        for key in ("model", "config", "arguments", "data"):
            if record[key] != self.record[key]:
                difference = _difference(key, record[key], self.record[key])
                raise ValueError(f"[train] cannot resume {path}: its {difference}")
        self.record["history"], self.record["seconds"] = record["history"], record["seconds"]
        self.record["commands"] = record.get("commands", []) + self.record["commands"]
        self.step, self.losses = record["step"], losses
        self.model.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("weights/")})
        self.average.module.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema/")})
        self.average.n_averaged.copy_(tensors["averaged"])
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = {
                key: tensors[f"adam/{name}/{key}"].to("cpu" if key == "step" else self.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        self._schedule()


def _difference(key: str, old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() | new.keys():
            if old.get(name) != new.get(name):
                return f"{key} has {name}={old.get(name)!r}, not {new.get(name)!r}"
    return f"{key} is {old!r}, not {new!r}"


def resolve_amp(amp: str, device: torch.device) -> str:
    """Return "bf16" or "off"."""
    if amp != "auto":
        return amp
    if device.type == "cpu":
        return "bf16" if torch.cpu.get_capabilities().get("avx512_bf16") else "off"
    return "bf16"


def autocast(amp: str, device: torch.device) -> torch.autocast:
    """Return the context for an `amp` of "bf16" or "off"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16")
