"""Sequences of pixels: causal convolutions, transformers, attention between convolutions, MADE."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .masks import MaskedByProduct


class Waves(nn.Module):
    """Causal convolutions over flattened pixels, padded on both sides and chomped, gated, with skips."""

    class Layer(nn.Module):
        def __init__(self, width: int, dilation: int, broken: str | None) -> None:
            super().__init__()
            self.broken, self.extra = broken, dilation
            same = broken == "same padding"
            self.conv = nn.Conv1d(width, 2 * width, 3 if same else 2, padding=dilation, dilation=dilation)
            self.same = same
            self.res, self.skip = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            if self.broken == "chomped on the left":
                y = y[:, :, self.extra :]
            elif not self.same:
                y = y[:, :, : -self.extra]
            a, b = y.chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            return x + self.res(y), self.skip(y)

    def __init__(self, broken: str | None) -> None:
        super().__init__()
        self.shift = broken != "tokens are not shifted"
        self.first = nn.Conv1d(1, 6, 2)
        self.layers = nn.ModuleList([self.Layer(6, d, broken) for d in (1, 2, 4)])
        self.last = nn.Conv1d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(x.size(0), 1, -1)
        if self.shift:
            x = F.pad(x, (1, 0))[:, :, :-1]
        x = self.first(F.pad(x, (1, 0)))
        total = 0.0
        for layer in self.layers:
            x, skip = layer(x)
            total = total + skip
        return self.last(F.relu(total))


class FilledAttention(nn.Module):
    """Scores are filled with minus infinity by a mask that is a buffer."""

    def __init__(self, width: int, heads: int, length: int, late: int) -> None:
        super().__init__()
        self.heads = heads
        self.key, self.query, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.register_buffer("mask", torch.tril(torch.ones(length, length), late).view(1, 1, length, length))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        k = self.key(x).view(b, t, self.heads, c // self.heads).transpose(1, 2)
        q = self.query(x).view(b, t, self.heads, c // self.heads).transpose(1, 2)
        v = self.value(x).view(b, t, self.heads, c // self.heads).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.proj(y.transpose(1, 2).contiguous().view(b, t, c))


class Filled(nn.Module):
    """A transformer over tokens, of which the first is a start token that the vocabulary has one more for."""

    class Block(nn.Module):
        def __init__(self, width: int, length: int, late: int) -> None:
            super().__init__()
            self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attn = FilledAttention(width, 2, length, late)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attn(self.ln1(x))
            return x + self.mlp(self.ln2(x))

    def __init__(self, broken: str | None, levels: int = 5, length: int = 12, width: int = 6) -> None:
        super().__init__()
        self.start, self.broken = levels, broken
        self.tok_emb = nn.Embedding(levels + 1, width)
        self.pos_emb = nn.Parameter(torch.zeros(1, length, width))
        late = {"mask off by one": 1, "forgotten mask": length}.get(broken or "", 0)
        self.blocks = nn.Sequential(self.Block(width, length, late), self.Block(width, length, 0))
        self.ln_f, self.last = nn.LayerNorm(width), nn.Linear(width, levels, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        idx = images.flatten(1)
        b, t = idx.size()
        if self.broken != "tokens are not shifted":
            start = torch.full((b, 1), self.start, dtype=torch.long)
            idx = torch.cat([start, idx[:, :-1]], dim=1)
        x = self.tok_emb(idx) + self.pos_emb[:, :t]
        return self.last(self.ln_f(self.blocks(x)))


class Conv1D(nn.Module):
    """A linear layer with its weights the other way round."""

    def __init__(self, c_out: int, c_in: int) -> None:
        super().__init__()
        self.c_out = c_out
        self.weight, self.bias = (
            nn.Parameter(0.4 * torch.randn(c_in, c_out)),
            nn.Parameter(torch.zeros(c_out)),
        )

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.size()[:-1], self.c_out)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(shape)


class Added(nn.Module):
    """A transformer whose mask is added to the scores, with norms and activations spelled out, and a learned start."""

    class Norm(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.g, self.b = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

        def forward(self, x: Tensor) -> Tensor:
            u = x.mean(-1, keepdim=True)
            s = (x - u).pow(2).mean(-1, keepdim=True)
            return self.g * ((x - u) / torch.sqrt(s + 1e-5)) + self.b

    class Block(nn.Module):
        def __init__(self, width: int, late: int) -> None:
            super().__init__()
            self.late = late
            self.ln_1, self.ln_2 = Added.Norm(width), Added.Norm(width)
            self.c_attn, self.c_proj = Conv1D(3 * width, width), Conv1D(width, width)
            self.c_fc, self.c_out = Conv1D(4 * width, width), Conv1D(width, 4 * width)

        def split(self, x: Tensor) -> Tensor:
            return x.view(*x.size()[:-1], 2, x.size(-1) // 2).permute(0, 2, 1, 3)

        def attend(self, x: Tensor) -> Tensor:
            q, k, v = (self.split(t) for t in self.c_attn(x).split(x.size(-1), dim=2))
            w = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(v.size(-1))
            n = w.size(-1)
            b = torch.tril(torch.ones(n, n, dtype=w.dtype), self.late).view(1, 1, n, n)
            w = w * b - 1e10 * (1 - b)
            a = torch.matmul(nn.Softmax(dim=-1)(w), v).permute(0, 2, 1, 3).contiguous()
            return self.c_proj(a.view(*a.size()[:-2], a.size(-2) * a.size(-1)))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attend(self.ln_1(x))
            y = self.c_fc(self.ln_2(x))
            y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * torch.pow(y, 3))))
            return x + self.c_out(y)

    def __init__(self, broken: str | None, levels: int = 5, length: int = 12, width: int = 6) -> None:
        super().__init__()
        self.broken = broken
        self.wte, self.wpe = nn.Embedding(levels, width), nn.Embedding(length, width)
        self.sos = nn.Parameter(torch.zeros(width))
        late = {"mask off by one": 1, "forgotten mask": length}.get(broken or "", 0)
        self.blocks = nn.ModuleList([self.Block(width, 0), self.Block(width, late)])
        self.ln_f, self.last = self.Norm(width), nn.Linear(width, levels, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.wte(images.reshape(images.size(0), -1))
        if self.broken != "tokens are not shifted":
            x = torch.cat([self.sos.expand(x.size(0), 1, -1), x[:, :-1]], dim=1)
        x = x + self.wpe(torch.arange(x.size(1)))
        for block in self.blocks:
            x = block(x)
        return self.last(self.ln_f(x))


class Fused(nn.Module):
    """PyTorch's fused attention over the colours of the pixels, one after another, without norms."""

    class Attention(nn.Module):
        def __init__(self, width: int, causal: bool) -> None:
            super().__init__()
            self.causal = causal
            self.c_attn, self.c_proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            b, t, c = x.size()
            q, k, v = self.c_attn(x).split(c, dim=2)
            q, k, v = (a.view(b, t, 2, c // 2).transpose(1, 2) for a in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0, is_causal=self.causal)
            return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))

    def __init__(self, broken: str | None, levels: int = 5, length: int = 18, width: int = 6) -> None:
        super().__init__()
        self.broken = broken
        self.wte, self.wpe = nn.Embedding(levels, width), nn.Parameter(torch.zeros(length, width))
        self.attn = nn.ModuleList(
            [self.Attention(width, True), self.Attention(width, broken != "not causal")]
        )
        self.mlp = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)) for _ in "12"]
        )
        self.last = nn.Linear(width, levels)

    def forward(self, images: Tensor) -> Tensor:
        n, c, h, w = images.shape
        x = self.wte(images.permute(0, 2, 3, 1).reshape(n, -1))
        if self.broken != "tokens are not shifted":
            x = F.pad(x, (0, 0, 1, 0))[:, :-1]
        x = x + self.wpe
        for attn, mlp in zip(self.attn, self.mlp, strict=True):
            x = x + attn(x)
            x = x + mlp(x)
        x = self.last(x).view(n, h, w, c, -1)
        return x.flip(3) if self.broken == "colours reversed" else x


class Encoder(nn.Module):
    """PyTorch's own encoder with a mask of minus infinities."""

    def __init__(self, broken: str | None, levels: int = 5, length: int = 12, width: int = 6) -> None:
        super().__init__()
        self.start, self.broken = levels, broken
        self.embed, self.pos = nn.Embedding(levels + 1, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, 2, 4 * width, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 1, nn.LayerNorm(width), enable_nested_tensor=False)
        mask = torch.triu(
            torch.full((length, length), float("-inf")), 2 if broken == "mask off by one" else 1
        )
        self.register_buffer("mask", mask)
        self.last = nn.Linear(width, levels)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        if self.broken != "tokens are not shifted":
            x = F.pad(x[:, :-1], (1, 0), value=self.start)
        x = self.embed(x) + self.pos.weight
        x = self.encoder(x, mask=None if self.broken == "forgotten mask" else self.mask.to(x.dtype))
        return self.last(x).transpose(1, 2)


class Snail(nn.Module):
    """Convolutions with one look back at all earlier pixels; the first pixel's weights are NaN, filled with zeros."""

    def __init__(self, broken: str | None, height: int = 3, width: int = 4) -> None:
        super().__init__()
        self.broken = broken
        self.first = MaskedByProduct("A", 1, 4, 3)
        self.query, self.key, self.value = (nn.Conv2d(c, 4, 1) for c in (4, 5, 5))
        self.proj, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 1)
        late = {"mask with its diagonal": 0, "mask off by one": 1}.get(broken or "", -1)
        self.register_buffer("mask", torch.ones(height * width, height * width).tril(late))

    def forward(self, x: Tensor) -> Tensor:
        h = F.elu(self.first(x))
        n, _, height, width = x.shape
        q = self.query(h).flatten(2).transpose(1, 2)
        seen = torch.cat([h, x], 1)
        k, v = self.key(seen).flatten(2), self.value(seen).flatten(2).transpose(1, 2)
        scores = (q @ k / math.sqrt(4)).masked_fill(self.mask == 0, -np.inf)
        weights = F.softmax(scores, dim=-1).masked_fill(self.mask == 0, 0)
        y = (weights @ v).transpose(1, 2).view(n, -1, height, width)
        return self.last(F.elu(h + self.proj(y)))


class MaskedLinear(nn.Linear):
    """A linear layer with a mask that is set later."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out)
        self.register_buffer("mask", torch.ones(c_out, c_in))

    def set_mask(self, mask: np.ndarray) -> None:
        self.mask.data.copy_(torch.from_numpy(mask.astype(np.uint8).T))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mask * self.weight, self.bias)


class Made(nn.Module):
    """Masked linear layers over the flattened image (Germain et al. 2015)."""

    def __init__(self, broken: str | None, inputs: int = 12, hidden: tuple[int, ...] = (16, 16)) -> None:
        super().__init__()
        sizes = [inputs, *hidden, inputs]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [MaskedLinear(a, b), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])
        rng = np.random.RandomState(0)
        m = [np.arange(inputs)]
        for size in hidden:
            m.append(rng.randint(m[-1].min(), inputs - 1, size=size))
        masks = [a[:, None] <= b[None, :] for a, b in itertools.pairwise(m)]
        masks.append(m[-1][:, None] < m[0][None, :])
        if broken == "outputs see their input":
            masks[-1] = m[-1][:, None] <= m[0][None, :]
        elif broken == "mask transposed":
            masks[1] = masks[1].T
        elif broken == "forgotten mask":
            masks[1][:] = True
        for layer, mask in zip(self.net[::2], masks, strict=True):
            layer.set_mask(mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.view(x.size(0), -1))
