"""Models of published architectures from their parts, and what each is called with.

Source: docs/contract.md 6.4.
"""

import math
from typing import Any

import torch
from torch import nn

from conformance.case.model import Model, Shape
from conformance.models.blocks import Attention, Layer, Mlp, Rotary, Where, norm


class Decoder(nn.Module):  # type: ignore[misc] # torch ships no types that strict mode can follow
    """A causal language model with a cache: tokens [1, S], positions [S] -> logits [1, S, vocab]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab, shape.width)
        self.positions = nn.Embedding(shape.learned, shape.width) if shape.learned else None
        self.where = Rotary(shape)
        self.layers = nn.ModuleList(Layer(shape, number) for number in range(shape.layers))
        self.norm = norm(shape)
        self.head = nn.Linear(shape.width, shape.vocab, bias=False)

    def forward(self, tokens: Any, positions: Any) -> Any:
        """See the class."""
        return self.decode(self.embed(tokens), positions)

    def decode(self, x: Any, positions: Any) -> Any:
        """What becomes of rows [1, S, width]."""
        if self.shape.scaled:
            x = x * math.sqrt(self.shape.width)
        if self.positions is not None:
            x = x + self.positions(positions)
        where = self.where(positions, x)
        for layer in self.layers:
            x = layer(x, where)
        return self.head(self.norm(x))


class Images(Decoder):
    """A multimodal decoder: tokens past the vocabulary are rows of ``features`` [1, S, width]."""

    def forward(self, tokens: Any, positions: Any, features: Any = None) -> Any:
        """See the class."""
        text = tokens < self.shape.vocab
        rows = self.embed(torch.where(text, tokens, 0))
        return self.decode(torch.where(text.unsqueeze(-1), rows, features), positions)


class Encoder(nn.Module):  # type: ignore[misc] # the same
    """BERT: tokens, kinds [1, S] -> rows [1, S, width], or logits where the head is tied."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocab, shape.width)
        self.kinds = nn.Embedding(2, shape.width)
        self.positions = nn.Embedding(shape.length, shape.width)
        self.norm = norm(shape)
        self.mixers = nn.ModuleList(Attention(shape, cached=False) for _ in range(shape.layers))
        self.mlps = nn.ModuleList(Mlp(shape) for _ in range(shape.layers))
        self.norms = nn.ModuleList(norm(shape) for _ in range(2 * shape.layers))
        self.head = nn.Linear(shape.width, shape.vocab, bias=False) if shape.tied else None

    def forward(self, tokens: Any, kinds: Any) -> Any:
        """See the class."""
        positions = torch.arange(tokens.shape[1]).unsqueeze(0)
        x = self.norm(self.embed(tokens) + self.kinds(kinds) + self.positions(positions))
        for number, (mixer, mlp) in enumerate(zip(self.mixers, self.mlps, strict=True)):
            x = self.norms[2 * number](x + mixer(x))
            x = self.norms[2 * number + 1](x + mlp(x))
        return x if self.head is None else self.head(x)


class Crossing(nn.Module):  # type: ignore[misc] # the same
    """A decoder's layer that reads an encoder's rows as well."""

    def __init__(self, shape: Shape, *, cached: bool, scale: float | None) -> None:
        super().__init__()
        self.own = Attention(shape, cached=cached, scale=scale)
        self.other = Attention(shape, cached=False, scale=scale)
        self.norms = nn.ModuleList(norm(shape) for _ in range(3))
        self.mlp = Mlp(shape)

    def forward(self, x: Any, rows: Any, where: Where) -> Any:
        """X [1, S, width], rows [1, T, width] -> as x."""
        x = x + self.own(self.norms[0](x), where)
        x = x + self.other(self.norms[1](x), other=rows)
        return x + self.mlp(self.norms[2](x))


class Speech(nn.Module):  # type: ignore[misc] # the same
    """Whisper's decoder: tokens [1, S], positions [S], an encoder's rows [1, 6, width] -> logits."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(shape.vocab, shape.width), nn.Embedding(shape.length, shape.width)
        self.where = Rotary(shape)
        self.layers = nn.ModuleList(Crossing(shape, cached=True, scale=None) for _ in range(shape.layers))
        self.norm, self.head = norm(shape), nn.Linear(shape.width, shape.vocab, bias=False)

    def forward(self, tokens: Any, positions: Any, rows: Any) -> Any:
        """See the class."""
        x = self.embed(tokens) + self.positions(positions)
        where = self.where(positions, x)
        for layer in self.layers:
            x = layer(x, rows, where)
        return self.head(self.norm(x))


class Sequence(nn.Module):  # type: ignore[misc] # the same
    """T5: tokens and targets [1, S] -> logits of the targets [1, S, vocab]; positions are biases of the scores."""

    BUCKETS, FAR = 8, 16

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, self.embed = shape, nn.Embedding(shape.vocab, shape.width)
        self.bias = nn.ModuleList(nn.Embedding(self.BUCKETS, shape.heads) for _ in range(2))
        self.encoders = nn.ModuleList(Attention(shape, cached=False, scale=1.0) for _ in range(shape.layers))
        self.mlps = nn.ModuleList(Mlp(shape) for _ in range(shape.layers))
        self.norms = nn.ModuleList(norm(shape) for _ in range(2 * shape.layers + 1))
        self.layers = nn.ModuleList(Crossing(shape, cached=False, scale=1.0) for _ in range(shape.layers))
        self.norm, self.head = norm(shape), nn.Linear(shape.width, shape.vocab, bias=False)

    def relative(self, number: int, rows: int) -> Any:
        """Biases [1, heads, rows, rows]: by direction and distance for the encoder, by the distance back otherwise."""
        places, buckets, first = torch.arange(rows), self.BUCKETS, 0
        distance = places.unsqueeze(0) - places.unsqueeze(1)
        if number == 0:
            buckets //= 2
            first = (distance > 0).long() * buckets
            distance = distance.abs()
        else:
            distance = -torch.min(distance, torch.zeros_like(distance))
        near = buckets // 2
        far = near + (torch.log(distance.float() / near) / math.log(self.FAR / near) * (buckets - near)).long()
        far = torch.min(far, torch.full_like(far, buckets - 1))
        return self.bias[number](first + torch.where(distance < near, distance, far)).permute(2, 0, 1).unsqueeze(0)

    def forward(self, tokens: Any, targets: Any) -> Any:
        """See the class."""
        x, mask = self.embed(tokens), self.relative(0, tokens.shape[1])
        for number, (mixer, mlp) in enumerate(zip(self.encoders, self.mlps, strict=True)):
            x = x + mixer(self.norms[2 * number](x), Where(mask=mask))
            x = x + mlp(self.norms[2 * number + 1](x))
        rows = self.norms[-1](x)
        places = torch.arange(targets.shape[1])
        mask = self.relative(1, targets.shape[1]) + torch.where(places <= places.unsqueeze(-1), 0.0, -1e4)
        y = self.embed(targets)
        for layer in self.layers:
            y = layer(y, rows, Where(mask=mask))
        return self.head(self.norm(y) * self.shape.width**-0.5)


_KINDS: dict[str, Any] = {
    "decoder": Decoder,
    "encoder": Encoder,
    "sequence": Sequence,
    "speech": Speech,
    "images": Images,
}
#: Rows that Whisper's encoder gives here.
_HEARD = 6


def build(question: Model) -> Any:
    """The model in eval mode with drawn weights, not quantized; a tied head still has a weight of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _KINDS[question.kind](question.shape).eval().requires_grad_(requires_grad=False)


def forget(model: Any) -> None:
    """State starts as zeros."""
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] in {"keys", "values", "kept"}:
            buffer.zero_()


def inputs(question: Model) -> list[tuple[Any, ...]]:
    """The inputs of each call, in order."""
    generator = torch.Generator().manual_seed(1)
    shape, first, calls = question.shape, 0, []
    heard = torch.randn(1, _HEARD, shape.width, generator=generator)
    for rows in question.calls:
        past = shape.vocab // 4 if question.kind == "images" else 0
        tokens = torch.randint(0, shape.vocab + past, (1, rows), generator=generator)
        tokens[0, -1] = shape.vocab - 1 - first  # the end of the table is looked up too
        others: dict[str, tuple[Any, ...]] = {
            "decoder": (torch.arange(first, first + rows),),
            "encoder": (torch.arange(rows).remainder(2).unsqueeze(0),),
            "sequence": (tokens.flip(1),),
        }
        others["speech"] = (*others["decoder"], heard)
        others["images"] = (*others["decoder"], torch.randn(1, rows, shape.width, generator=generator))
        calls.append((tokens, *others[question.kind]))
        first += rows
    return calls


def dynamic_shapes(question: Model) -> tuple[Any, ...] | None:
    """Which sizes of the inputs torch.export leaves to the caller; None: none."""
    if not question.dynamic:
        return None
    rows = torch.export.Dim("rows", min=2, max=question.shape.length)
    first = {1: rows}
    others: dict[str, tuple[Any, ...]] = {
        "decoder": ({0: rows},),
        "encoder": (first,),
        "sequence": (first,),
        "speech": ({0: rows}, None),
        "images": ({0: rows}, first),
    }
    return (first, *others[question.kind])
