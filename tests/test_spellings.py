"""What public models are made of, in small: compiled as it is, sampled alike by both runtimes, scored as by PyTorch."""

from __future__ import annotations

import pytest
import torch
from test_rules import Lambda, Network, check
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm

import pixelfast as pf

LEVELS, SHAPE = 4, (1, 4, 5)
SCALED = pf.inputs.scaled(-1, 1)


class MaskedLinear(nn.Linear):
    """Germain et al. 2015, equation 12."""

    def __init__(self, before: Tensor, after: Tensor, *, strictly: bool = False):
        super().__init__(len(before), len(after))
        order = after[:, None] > before if strictly else after[:, None] >= before
        self.register_buffer("mask", order.float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class Made(nn.Module):
    """A masked autoencoder of whole images, with direct connections from pixels to their successors."""

    def __init__(self, *, strictly: bool = True, levels_last: bool = False):
        super().__init__()
        pixels = torch.arange(20)
        hidden = torch.arange(24) % 19
        outputs = pixels.repeat_interleave(LEVELS) if levels_last else pixels.repeat(LEVELS)
        self.levels_last = levels_last
        self.first, self.second = MaskedLinear(pixels, hidden), MaskedLinear(hidden, hidden)
        self.last = MaskedLinear(hidden, outputs, strictly=strictly)
        self.direct = MaskedLinear(pixels, outputs, strictly=True)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(x.shape[0], -1)
        h = torch.relu(self.second(F.gelu(self.first(flat))))
        y = self.last(h) + self.direct(flat)
        if self.levels_last:
            return y.view(-1, *SHAPE, LEVELS).permute(0, 4, 1, 2, 3)
        return y.view(-1, LEVELS, *SHAPE)


class Block(nn.Module):
    """Radford et al. 2019: norms before, a start token's shift outside."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Dropout()
        )

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.project(self.norm(x)).split(width, 2)
        q, k, v = (t.view(n, length, 2, width // 2).transpose(1, 2) for t in parts)
        scores = (q @ k.transpose(-2, -1)) * (width // 2) ** -0.5
        hidden = ~torch.ones(length, length, dtype=torch.bool).tril()
        y = F.softmax(scores.masked_fill(hidden, float("-inf")), -1) @ v
        x = x + self.out(y.transpose(1, 2).contiguous().view(n, length, width))
        return x + self.mlp(self.after(x))


class Transformer(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.tokens, self.places = nn.Embedding(LEVELS, width), nn.Parameter(torch.randn(1, 20, width))
        self.start = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, LEVELS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        h = self.tokens(x.view(n, -1))
        h = torch.cat([self.start.expand(n, -1, -1), h[:, :-1]], 1) + self.places
        logits = self.head(self.norm(self.blocks(h)))
        return logits.permute(0, 2, 1).view(n, LEVELS, *SHAPE)


class PositionsFirst(nn.Module):
    """Tokens (positions, images, channels), PyTorch's own attention, a start token in front (Chen et al. 2020)."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.start = nn.Parameter(torch.randn(width))
        self.tokens, self.places = nn.Embedding(LEVELS, width), nn.Embedding(20, width)
        self.norm, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.head = nn.MultiheadAttention(width, 2), nn.Linear(width, LEVELS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(x.shape[0], -1).transpose(0, 1).contiguous()
        length, n = flat.shape
        start = torch.ones(1, n, len(self.start)) * self.start
        h = torch.cat([start, self.tokens(flat)[:-1]], 0) + self.places(torch.arange(length)).unsqueeze(1)
        hidden = torch.triu(torch.full((length, length), -float("inf")), diagonal=1)
        h = self.norm(h)
        h = h + self.attention(h, h, h, attn_mask=hidden, need_weights=False)[0]
        return self.head(self.after(h)).permute(1, 2, 0).view(n, LEVELS, *SHAPE)


class Causal1d(nn.Module):
    """Dilated convolutions over flattened pixels, left of the present one (van den Oord et al. 2016)."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(1, 6, 2)
        self.dilated = nn.ModuleList(nn.Conv1d(6, 12, 2, padding=d, dilation=d) for d in (1, 2, 4))
        self.mix = nn.ModuleList(nn.Conv1d(6, 6, 1) for _ in range(3))
        self.last = nn.Conv1d(6, LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        h = self.first(F.pad(x.flatten(2), (2, 0)))[:, :, :-1]
        skip = torch.zeros_like(h)
        for conv, mix in zip(self.dilated, self.mix, strict=True):
            value, gate = conv(h)[:, :, : -conv.padding[0]].chunk(2, 1)
            h = h + mix(torch.tanh(value) * torch.sigmoid(gate))
            skip = skip + h
        return self.last(F.relu(skip)).view(n, LEVELS, *SHAPE)


class Unfolded(nn.Module):
    """A masked convolution as a product with windows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 9))
        self.register_buffer("mask", (torch.arange(9) < 4).float())
        self.last = nn.Conv2d(8, LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        windows = F.unfold(x, 3, padding=1)
        h = torch.einsum("oc,ncl->nol", self.weight * self.mask, windows)
        return self.last(F.elu(h.view(x.shape[0], 8, *SHAPE[1:]))).unsqueeze(2)


class Local(nn.Module):
    """Windows masked position by position (Jain et al. 2020)."""

    def __init__(self):
        super().__init__()
        at = torch.arange(20).view(1, 1, 4, 5).float()
        neighbours = F.unfold(at + 1, 3, padding=1)[0]  # 0 outside
        self.register_buffer("mask", ((neighbours > 0) & (neighbours < at.view(-1) + 1)).float()[None])
        self.weight, self.last = nn.Parameter(torch.randn(8, 9)), nn.Conv2d(8, LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.matmul(self.weight, F.unfold(x, 3, padding=1) * self.mask)
        return self.last(torch.tanh(h).view(x.shape[0], 8, *SHAPE[1:])).unsqueeze(2)


class Coarse(nn.Module):
    """Pixels of blocks as channels, one block row later, and back."""

    def __init__(self, *, spelled: bool):
        super().__init__()
        self.spelled = spelled
        self.mix, self.last = nn.Conv2d(4, 8, 1), nn.Conv2d(2, LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = F.pad(x, (0, 1))
        if self.spelled:
            h = x.view(n, 1, 2, 2, 3, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4, 2, 3)
        else:
            h = F.pixel_unshuffle(x, 2)
        h = F.mish(self.mix(torch.cat([torch.zeros_like(h[:, :, :1]), h[:, :, :-1]], 2)))
        if self.spelled:
            h = h.view(n, 2, 2, 2, 2, 3).permute(0, 1, 4, 2, 5, 3).reshape(n, 2, 4, 6)
        else:
            h = F.pixel_shuffle(h, 2)
        return self.last(h[..., :-1]).unsqueeze(2)


class ChannelNorm(nn.Module):
    """A norm of channels where they are the second axis, by two permutations (Liu et al. 2022)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(channels), nn.Linear(channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.mix(self.norm(h.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


WHOLE = {
    "MADE": (Made, SCALED),
    "MADE, levels last": (lambda: Made(levels_last=True), SCALED),
    "transformer": (Transformer, None),
    "transformer, positions first": (PositionsFirst, None),
    "1-D convolutions": (Causal1d, SCALED),
    "unfolded": (Unfolded, SCALED),
    "masked windows": (Local, SCALED),
    "space to depth": (lambda: Coarse(spelled=False), SCALED),
    "space to depth, spelled": (lambda: Coarse(spelled=True), SCALED),
}


@pytest.mark.parametrize("name", WHOLE)
def test_models(name):
    build, to_input = WHOLE[name]
    torch.manual_seed(0)
    check(build().eval(), to_input or (lambda images: images))


BETWEEN = {
    "layer norm": lambda: ChannelNorm(8),
    "weight norm": lambda: weight_norm(nn.Conv2d(8, 8, 1)),
    "weight norm, parametrized": lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Conv2d(8, 8, 1)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Conv2d(8, 8, 1)),
    "dropouts": lambda: nn.Sequential(nn.Dropout2d(), nn.Dropout(), nn.AlphaDropout(), nn.FeatureAlphaDropout()),
    "concatenated elu": lambda: Lambda(lambda h: F.elu(torch.cat([h, -h], 1))[:, ::2]),
    "maxout": lambda: Lambda(lambda h: h.view(h.shape[0], 4, 2, *h.shape[2:]).max(2)[0].repeat(1, 2, 1, 1)),
    "local response": lambda: Lambda(lambda h: h / (1 + 0.1 * h.square().mean(1, keepdim=True)) ** 0.75),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm`:FutureWarning")
@pytest.mark.parametrize("name", BETWEEN)
def test_between(name):
    torch.manual_seed(0)
    check(Network(BETWEEN[name]()).eval(), SCALED)


# --- masks are structure --------------------------------------------------------------------------------------


def first_row() -> Tensor:
    return torch.arange(4)[:, None] == 0


def overwritten(h: Tensor, index, value) -> Tensor:
    h = h.clone()
    h[index] = value
    return h


ROLLED = {
    "mul": lambda h: h * (~first_row()).float(),
    "mul of integers": lambda h: h * (~first_row()),
    "masked_fill": lambda h: h.masked_fill(first_row(), 0),
    "masked_fill, not zero": lambda h: h.masked_fill(first_row(), 0.5),
    "where": lambda h: torch.where(first_row(), 0.25, h),
    "where of two": lambda h: torch.where(first_row(), torch.ones_like(h), h.tanh()),
    "slice": lambda h: overwritten(h, (slice(None), slice(None), 0), 0),
    "mask as index": lambda h: overwritten(h, first_row().expand(h.shape), 1.0),
}


class Rolled(nn.Module):
    """What is below the last row comes back above the first, unless it is masked away."""

    def __init__(self, mask):
        super().__init__()
        self.mask, self.first, self.last = mask, nn.Conv2d(1, 4, 1), nn.Conv2d(4, LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mask(self.first(x).roll(1, 2))).unsqueeze(2)


@pytest.mark.parametrize("name", ROLLED)
def test_what_is_masked_away_is_no_dependence(name):
    torch.manual_seed(0)
    check(Rolled(ROLLED[name]).eval(), SCALED)


@pytest.mark.parametrize(
    "leak",
    [lambda h: h, lambda h: h * (~first_row()).float().clamp(0.1), lambda h: h.masked_fill(h > 0, 0)],
    ids=["no mask", "no zeros", "of the image"],
)
def test_what_is_not_masked_away_is_a_dependence(leak):
    with pytest.raises(pf.CausalityError, match=r"pixel \(y=0, x=0\) depends on pixel \(y=3, x=0\)"):
        pf.compile(Rolled(leak).eval(), shape=SHAPE, head=pf.heads.Categorical(LEVELS), to_input=SCALED)


def test_channels_that_are_masked_away_are_no_dependence():
    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.ahead = nn.Conv2d(1, 4, (1, 2)), nn.Conv2d(1, 4, 1)
            self.last = nn.Conv2d(8, LEVELS, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.cat([self.left(F.pad(x, (2, -1))), self.ahead(x)], 1)
            return self.last(h * (torch.arange(8) < 4).float()[:, None, None]).unsqueeze(2)

    torch.manual_seed(0)
    check(Chosen().eval(), SCALED)


def test_a_leak_through_whole_images_is_found():
    torch.manual_seed(0)
    with pytest.raises(
        pf.CausalityError, match=r"pixel \(y=0, x=0\) depends on pixel \(y=0, x=0\).*module 'last'"
    ):
        pf.compile(
            Made(strictly=False).eval(), shape=SHAPE, head=pf.heads.Categorical(LEVELS), to_input=SCALED
        )
