"""The parts that published language models are made of, at any width: norms, rotary positions, attention, mixers.

State that a published model keeps between calls (keys, values, the inputs of a short convolution) is a buffer that
``forward`` writes; ``positions`` [S] says where the rows of a call belong.
"""

import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from conformance.case.model import Shape


class RMSNorm(nn.Module):  # type: ignore[misc] # torch ships no types that strict mode can follow
    """Llama's norm; Gemma's adds one to the weight."""

    def __init__(self, width: int, plus: float = 0.0) -> None:
        super().__init__()
        self.weight, self.plus = nn.Parameter(torch.rand(width) + 0.5), plus

    def forward(self, x: Any) -> Any:
        """[..., width] of any float dtype, computed in float32 as published."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return wide.type_as(x) * (self.weight + self.plus if self.plus else self.weight)


def norm(shape: Shape) -> nn.Module:
    """The norm of a layer."""
    if shape.norm == "layer":
        return nn.LayerNorm(shape.width)
    return RMSNorm(shape.width, float(shape.norm == "rms_plus_one"))


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    """Rotary positions on the first columns of every head; x [B, heads, S, head], cos and sin [S, rotated]."""
    rotated = cos.shape[-1]
    first, rest = x[..., :rotated], x[..., rotated:]
    low, high = first.chunk(2, dim=-1)
    first = first * cos + torch.cat([-high, low], dim=-1) * sin
    return torch.cat([first, rest], dim=-1) if rest.shape[-1] else first


def rotary_tables(rotated: int, length: int) -> tuple[Any, Any]:
    """Cosines and sines [length, rotated]."""
    inverse = 10000.0 ** (-torch.arange(0, rotated, 2).float() / rotated)
    angles = torch.outer(torch.arange(length).float(), inverse)
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


class Where(NamedTuple):
    """Where the rows of a call belong: positions [S], biases of the scores, cosines and sines; None: without."""

    positions: Any = None
    mask: Any = None
    cos: Any = None
    sin: Any = None


class Rotary(nn.Module):  # type: ignore[misc] # torch ships no types that strict mode can follow
    """Where the rows at some positions of a cache belong; rotated if the shape says so."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.length, self.rotary = shape.length, shape.rotary
        if shape.rotary:
            cos, sin = rotary_tables(shape.rotary, shape.length)
            self.register_buffer("cos", cos)
            self.register_buffer("sin", sin)

    def forward(self, positions: Any, x: Any) -> Where:
        """Positions [S], rows of the dtype of ``x``."""
        seen = torch.arange(self.length) <= positions.unsqueeze(-1)
        mask = torch.where(seen, 0.0, -1e9).type_as(x)
        return Where(positions, mask, *((self.cos[positions], self.sin[positions]) if self.rotary else ()))


class Attention(nn.Module):  # type: ignore[misc] # torch ships no types that strict mode can follow
    """Grouped-query attention over a cache, over the rows themselves, or over other rows."""

    def __init__(self, shape: Shape, *, cached: bool, scale: float | None = None) -> None:
        super().__init__()
        self.shape, self.head, self.scale, self.cached = shape, shape.width // shape.heads, scale, cached
        narrow, bias = shape.kv_heads * self.head, shape.bias != "none"
        self.q = nn.Linear(shape.width, shape.width, bias=bias)
        self.k = nn.Linear(shape.width, narrow, bias=bias)
        self.v = nn.Linear(shape.width, narrow, bias=bias)
        self.out = nn.Linear(shape.width, shape.width, bias=shape.bias == "all")
        if cached:
            kept = (1, shape.kv_heads, shape.length, self.head)
            self.register_buffer("keys", torch.zeros(kept))
            self.register_buffer("values", torch.zeros(kept))

    def _split(self, x: Any, heads: int) -> Any:
        return x.view(x.shape[0], x.shape[1], heads, self.head).transpose(1, 2)

    def forward(self, x: Any, where: Where | None = None, other: Any = None) -> Any:
        """X [B, S, width] -> the same; attends to ``other`` [B, T, width], or to the cache, or to x."""
        other, where = (x if other is None else other), where or Where()
        q = self._split(self.q(x), self.shape.heads)
        k, v = (self._split(part(other), self.shape.kv_heads) for part in (self.k, self.v))
        if where.cos is not None:
            q, k = rotate(q, where.cos, where.sin), rotate(k, where.cos, where.sin)
        if self.cached:
            self.keys[:, :, where.positions] = k
            self.values[:, :, where.positions] = v
            k, v = self.keys, self.values
        groups = self.shape.heads // self.shape.kv_heads
        if groups > 1:
            k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v))
        if where.mask is None:
            y = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            scores = q @ k.transpose(-1, -2) * (self.head**-0.5 if self.scale is None else self.scale)
            y = torch.softmax(scores + where.mask, -1) @ v
        return self.out(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], self.shape.width))


class ShortConvolution(nn.Module):  # type: ignore[misc] # torch ships no types that strict mode can follow
    """LFM2's: gates around a causal convolution of three rows, of which the last two live from call to call."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.into = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.weight = nn.Parameter(torch.randn(shape.width, 1, 3) / 2)
        self.register_buffer("kept", torch.zeros(1, shape.width, 2))

    def forward(self, x: Any, _where: Where) -> Any:
        """X [1, S, width] -> the same."""
        gate, after, rows = self.into(x).transpose(1, 2).chunk(3, dim=1)
        rows = torch.cat([self.kept, gate * rows], dim=-1)
        self.kept.copy_(rows[..., -2:])
        y = functional.conv1d(rows, self.weight, groups=self.weight.shape[0])
        return self.out((after * y).transpose(1, 2))


class Mlp(nn.Module):  # type: ignore[misc] # torch ships no types that strict mode can follow
    """Gated as Llama's and Gemma's, or two linears."""

    ACTS: ClassVar[dict[str, Any]] = {"silu": functional.silu, "relu": functional.relu, "erf": functional.gelu}

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        bias = shape.bias == "all"
        gated = shape.mlp in {"silu", "gelu"}
        self.act = self.ACTS.get(shape.mlp, _gelu if gated else _new_gelu)
        self.gate = nn.Linear(shape.width, shape.hidden, bias=bias) if gated else None
        self.up = nn.Linear(shape.width, shape.hidden, bias=bias)
        self.down = nn.Linear(shape.hidden, shape.width, bias=bias)

    def forward(self, x: Any) -> Any:
        """[..., width] -> the same."""
        up = self.up(x)
        return self.down(self.act(self.gate(x)) * up if self.gate else self.act(up))


def _gelu(x: Any) -> Any:
    return functional.gelu(x, approximate="tanh")


def _new_gelu(x: Any) -> Any:
    """The same written out, as GPT-2 and Phi have it."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class Experts(nn.Module):  # type: ignore[misc] # torch ships no types that strict mode can follow
    """A mixture of experts: weights [experts, hidden, width] of which a row reads those of its two best experts."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.route = nn.Linear(shape.width, shape.experts, bias=False)
        self.experts = nn.ModuleList(Mlp(shape) for _ in range(shape.experts))

    def forward(self, x: Any) -> Any:
        """[1, S, width] -> the same. Every expert computes; those that are not chosen count as nothing."""
        best, which = torch.topk(torch.softmax(self.route(x), -1), 2, dim=-1)
        best = best / best.sum(-1, keepdim=True)
        return sum(
            expert(x) * (best * (which == number)).sum(-1, keepdim=True) for number, expert in enumerate(self.experts)
        )


class Layer(nn.Module):  # type: ignore[misc] # torch ships no types that strict mode can follow
    """Norms around a mixer and an mlp, one after the other or side by side."""

    def __init__(self, shape: Shape, number: int) -> None:
        super().__init__()
        self.parallel = shape.parallel
        self.first, self.second = norm(shape), nn.Identity() if shape.parallel else norm(shape)
        self.mixer = ShortConvolution(shape) if shape.convolution and number % 2 == 0 else Attention(shape, cached=True)
        self.mlp = Experts(shape) if shape.experts else Mlp(shape)

    def forward(self, x: Any, where: Where) -> Any:
        """[1, S, width] -> the same."""
        y = self.first(x)
        mixed = self.mixer(y, where)
        if self.parallel:
            return x + mixed + self.mlp(y)
        x = x + mixed
        return x + self.mlp(self.second(x))
