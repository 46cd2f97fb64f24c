"""What takes the place of a decoder's modules while one step of it is traced. Imports torch.

The step's tensors reach the modules through one :class:`TracedStep`, because a model passes neither a slotted cache nor positions
of single rows to its layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from export.generation.group_query_attention import AttentionAttributes, SlottedCache, group_query_attention


@dataclass
class TracedStep:
    """Tensors of the step that is traced.

    Attributes:
        input_ids: INT64 ``[rows, tokens]``.
        position_ids: INT64 ``[rows, tokens]``.
        seqlens_k: INT32 ``[rows]``.
        total_sequence_length: INT32 ``[]``.
        encoder_mask: FP32 ``[rows, source]``.
        cross: Keys and values of the cross attention: of layer 0, then of layer 1, …
        past: Keys and values of the self attention before the step, in the same order.
        present: Those after the step, filled by the layers.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    seqlens_k: torch.Tensor
    total_sequence_length: torch.Tensor
    encoder_mask: torch.Tensor
    cross: Sequence[torch.Tensor]
    past: Sequence[torch.Tensor]
    present: list[torch.Tensor] = field(default_factory=list)
    relative_bias: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Projections:
    """Linear layers of an attention, whatever its family calls them."""

    query: nn.Module
    key: nn.Module
    value: nn.Module
    output: nn.Module
    heads: int
    scale: float

    @classmethod
    def of(cls, attention: Any) -> Projections:
        """Find them in an attention of T5 or of a family like BART."""
        if hasattr(attention, "q_proj"):
            layers = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
            heads, scale = attention.num_heads, float(attention.scaling)
        else:
            layers = (attention.q, attention.k, attention.v, attention.o)
            heads, scale = attention.n_heads, 1.0
        query, key, value, output = layers
        return cls(query=query, key=key, value=value, output=output, heads=heads, scale=scale)

    def split(self, states: torch.Tensor) -> torch.Tensor:
        """Reshape ``[rows, tokens, heads * head size]`` to ``[rows, heads, tokens, head size]``."""
        return states.view(states.shape[0], states.shape[1], self.heads, -1).transpose(1, 2)


class Replacement(nn.Module):  # type: ignore[misc]  # torch is untyped
    """A module that reads the step that is traced."""

    step: TracedStep

    def attach(self, step: TracedStep) -> None:
        """Use this step from now on."""
        self.step = step


class SlottedSelfAttention(Replacement):
    """Self attention over the slotted cache."""

    def __init__(self, attention: Any, layer: int) -> None:
        super().__init__()
        self.attention = attention
        self.layer = layer
        relative = getattr(attention, "has_relative_attention_bias", False)
        self.relative = RelativeBias(attention) if relative else None

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        """Attend to the row's own tokens so far."""
        part, step = Projections.of(self.attention), self.step
        if self.relative is not None:
            step.relative_bias = self.relative(step)  # T5 has it in its first layer, for all layers; UMT5 in each
        cache = SlottedCache(
            key=step.past[2 * self.layer],
            value=step.past[2 * self.layer + 1],
            seqlens_k=step.seqlens_k,
            total_sequence_length=step.total_sequence_length,
        )
        attributes = AttentionAttributes(heads=part.heads, kv_heads=part.heads, scale=part.scale)
        output, *present = group_query_attention(
            part.query(hidden_states),
            part.key(hidden_states),
            part.value(hidden_states),
            cache,
            attributes,
            step.relative_bias,
        )
        step.present.extend(present)
        return part.output(output), None


class RelativeBias(nn.Module):  # type: ignore[misc]  # torch is untyped
    """T5's bias by distance, as a table: a bucket holds all distances from the maximum on."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        farthest = int(attention.relative_attention_max_distance)
        by_key = attention.compute_bias(1, farthest + 1, cache_position=torch.tensor([farthest]))[0, :, 0]
        self.register_buffer("table", by_key.flip(-1).T.detach().contiguous(), persistent=False)

    def forward(self, step: TracedStep) -> torch.Tensor:
        """Return FP32 ``[rows, heads, tokens, total_sequence_length]``."""
        keys = torch.arange(step.total_sequence_length.to(torch.int64))
        distances = torch.clamp(step.position_ids[:, :, None] - keys[None, None, :], 0, self.table.shape[0] - 1)
        return self.table[distances].permute(0, 3, 1, 2)


class CachedCrossAttention(Replacement):
    """Cross attention over the keys and values of ``encoder.onnx``."""

    def __init__(self, attention: Any, layer: int) -> None:
        super().__init__()
        self.attention = attention
        self.layer = layer

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        """Attend to the tokens of the row's source that are not padding."""
        part, step = Projections.of(self.attention), self.step
        key, value = step.cross[2 * self.layer], step.cross[2 * self.layer + 1]
        padding = (1.0 - step.encoder_mask)[:, None, None, :] * torch.finfo(torch.float32).min
        scores = torch.matmul(part.split(part.query(hidden_states)) * part.scale, key.transpose(2, 3)) + padding
        attended = torch.matmul(torch.softmax(scores, -1), value).transpose(1, 2)
        return part.output(attended.reshape(hidden_states.shape[0], hidden_states.shape[1], -1)), None


class PositionTable(Replacement):
    """Embeddings of positions, of each row at a position of its own.

    The first rows of the tables of some families belong to no position.
    """

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        self.padding_idx: int | None = None
        if hasattr(embedding, "weights"):  # M2M100: positions begin behind padding, whose row is the table's first
            self.padding_idx = int(embedding.padding_idx)
            table = embedding.weights[self.padding_idx :]
        else:
            table = embedding.weight[getattr(embedding, "offset", 0) :]
        self.register_buffer("table", table.detach().clone(), persistent=False)

    @property
    def length(self) -> int:
        """Number of positions."""
        return int(self.table.shape[0]) - (self.padding_idx is not None)

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        """Return FP32 ``[rows, tokens, hidden]``."""
        positions = self.step.position_ids
        if self.padding_idx is not None:  # a padding token that is generated has no position there
            positions = torch.where(self.step.input_ids == self.padding_idx, torch.zeros_like(positions), positions + 1)
        return self.table[positions]


class LastTokenHead(Replacement):
    """The output head, for the last token of each row alone."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return FP32 ``[rows, vocabulary]``."""
        last = self.step.seqlens_k.to(torch.int64) - self.step.position_ids[:, 0]
        index = last[:, None, None].expand(-1, 1, hidden_states.shape[-1])
        return self.head(torch.gather(hidden_states, 1, index)[:, 0])


@contextlib.contextmanager
def replaced(places: Sequence[tuple[nn.Module, str, Replacement]]) -> Iterator[None]:
    """Put modules into a model, and put back its own at the end.

    Args:
        places: Parent, name of its attribute, and the module to put there.
    """
    originals = [(parent, name, getattr(parent, name)) for parent, name, _ in places]
    try:
        for parent, name, module in places:
            setattr(parent, name, module)
        yield
    finally:
        for parent, name, module in originals:
            setattr(parent, name, module)
