"""ONNX Runtime's operator ``GroupQueryAttention`` as a function of torch. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.onnx import symbolic_helper

CUSTOM_OPSETS = {"com.microsoft": 1}
"""What ``torch.onnx.export`` needs as ``custom_opsets`` for a graph with the operator."""


@dataclass(frozen=True, kw_only=True)
class AttentionAttributes:
    """Attributes of the operator.

    Attributes:
        heads: Heads of the queries.
        kv_heads: Heads of the keys and values.
        scale: Factor of the scores.
        window: Tokens that a token attends to, itself included. -1: all tokens before it.
        softcap: Bound of the scores, by tanh. 0: none.
    """

    heads: int
    kv_heads: int
    scale: float
    window: int = -1
    softcap: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SlottedCache:
    """Keys and values of one layer, and how many of them each row has.

    Attributes:
        key: FP32 ``[rows, kv heads, capacity, head size]``.
        value: As ``key``.
        seqlens_k: INT32 ``[rows]``, tokens of each row after this step, minus 1.
        total_sequence_length: INT32 ``[]``, tokens of the longest row after this step.
    """

    key: torch.Tensor
    value: torch.Tensor
    seqlens_k: torch.Tensor
    total_sequence_length: torch.Tensor


def group_query_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: SlottedCache,
    attributes: AttentionAttributes,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attend causally to the tokens of the cache and to the new ones, and add the new ones to the cache.

    The result is right only in an exported graph: called in torch, the function returns tensors of the right shapes.

    Args:
        query: FP32 ``[rows, tokens, heads * head size]``.
        key: FP32 ``[rows, tokens, kv heads * head size]``.
        value: As ``key``.
        cache: The tokens before.
        attributes: Attributes of the operator.
        bias: FP32 ``[rows or 1, heads or 1, tokens, total_sequence_length]`` that is added to the scores.

    Returns:
        The attended values, shaped as ``query``; the keys and the values of the cache after the step.
    """
    result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _GroupQueryAttention.apply(
        query, key, value, cache.key, cache.value, cache.seqlens_k, cache.total_sequence_length, bias, attributes
    )
    return result


class _GroupQueryAttention(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ARG004 - nothing is kept for a backward pass
        query: torch.Tensor,
        key: torch.Tensor,  # noqa: ARG004
        value: torch.Tensor,  # noqa: ARG004
        past_key: torch.Tensor,
        past_value: torch.Tensor,
        *rest: object,  # noqa: ARG004
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return query.clone(), past_key.clone(), past_value.clone()

    @staticmethod
    def symbolic(
        g: Any,
        query: Any,
        key: Any,
        value: Any,
        past_key: Any,
        past_value: Any,
        seqlens_k: Any,
        total_sequence_length: Any,
        bias: Any,
        attributes: AttentionAttributes,
    ) -> Any:
        optional = []
        if bias is not None:
            absent = symbolic_helper._optional_input_placeholder_tensor
            optional = [absent(g), absent(g), absent(g), bias]  # the tables of rotary positions, position_ids, attention_bias
        outputs = g.op(
            "com.microsoft::GroupQueryAttention",
            *(query, key, value, past_key, past_value, seqlens_k, total_sequence_length, *optional),
            num_heads_i=attributes.heads,
            kv_num_heads_i=attributes.kv_heads,
            scale_f=attributes.scale,
            local_window_size_i=attributes.window,
            softcap_f=attributes.softcap,
            do_rotary_i=0,
            outputs=3,
        )
        for output, like in zip(outputs, (query, past_key, past_value), strict=True):
            output.setType(like.type())
        return outputs
