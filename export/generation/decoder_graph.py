"""Export of a decoder, a causal language model, as one graph whose keys and values stay in slots. Imports torch.

Inputs of the graph:

* ``input_ids`` INT64 ``[rows, tokens]``, the new tokens of each row, padded on the right;
* ``position_ids`` INT64 ``[rows, tokens]``, their positions;
* ``seqlens_k`` INT32 ``[rows]``, the number of tokens of each row after this step, minus 1;
* ``total_sequence_length`` INT32 ``[]``, the number of tokens of the longest row after this step;
* ``past.N.key`` and ``past.N.value`` ``[rows, kv heads, capacity, head size]`` of each layer.

Outputs: ``logits`` FP32 ``[rows, vocabulary]`` of the last token of each row, and ``present.N.key`` and ``present.N.value``, which
the caller binds to the memory of the past. A step begins all of its rows, whose numbers of tokens may differ, or appends one token
to each, or continues a single row by several tokens: ONNX Runtime's operator can do no more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from export import checkpoint as checkpoints
from export import graph
from export.convert import silence_exporters
from export.generation.group_query_attention import CUSTOM_OPSETS
from export.generation.slotted_attention import TESTED, AttentionLayer, SlottedAttention
from export.generation.tied_embeddings import share_embeddings
from serving.errors import ExportError, first_line

OPSET = 18
CAPACITY = 16
"""Capacity of the cache while tracing; it is dynamic in the graph."""
FIXED_LIMITS = {"longrope": "original_max_position_embeddings", "dynamic": "max_position_embeddings"}
"""The rotary embeddings that change with the longest row of a batch, and the setting that says up to which length they do not."""

TRACING_ERRORS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a model or torch's tracer raises about a model that it cannot trace."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""The settings that a mixture of experts has."""


@dataclass(frozen=True, kw_only=True)
class DecoderLayout:
    """What a decoder's graph looks like.

    Attributes:
        layers: The attention of each layer, which also gives the shapes of the cache.
        vocabulary: Number of logits.
        max_tokens: Maximum tokens of a row, prompt and answer together; None if the model has no limit.
        shared_embeddings: Whether the input and the output embeddings are one tensor of the graph.
    """

    layers: tuple[AttentionLayer, ...]
    vocabulary: int
    max_tokens: int | None
    shared_embeddings: bool

    @property
    def windows(self) -> bool:
        """Whether a layer sees a window of tokens only, which ONNX Runtime before 1.24 computes wrongly."""
        return any(layer.window for layer in self.layers)

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes that a token takes in an fp32 cache."""
        return sum(2 * 4 * layer.kv_heads * layer.head_size for layer in self.layers)


class _DecoderStep(nn.Module):  # type: ignore[misc]  # torch has no types here
    """One step of a model, as it is traced."""

    def __init__(self, model: Any, attention: SlottedAttention) -> None:
        super().__init__()
        self.model, self.attention = model, attention

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        last_index: torch.Tensor,
        total_length: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return the logits of each row's last token, and the keys and values of each layer in turn."""
        cache = self.attention.begin(list(zip(past[::2], past[1::2], strict=True)) or None, last_index, total_length)

        def keep_last_tokens(_head: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
            """Reduce the hidden states ``[rows, tokens, hidden]`` before the head to those of each row's last token."""
            place = last_index.to(torch.int64) - position_ids[:, 0]
            return torch.gather(inputs[0], 1, place[:, None, None].expand(-1, 1, inputs[0].shape[-1]))[:, 0]

        hook = self.model.get_output_embeddings().register_forward_pre_hook(keep_last_tokens)
        try:
            outputs = self.model(
                input_ids=input_ids,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                cache_position=torch.arange(input_ids.shape[1]),
            )
        finally:
            hook.remove()
        present = [tensor for _, pair in sorted(self.attention.present.items()) for tensor in pair]
        return (outputs.logits.float(), *present)


def export_decoder(model: Any, target: Path, *, opset: int = OPSET) -> DecoderLayout:
    """Write the graph of a decoder.

    Args:
        model: The causal language model of ``transformers``, in evaluation mode. It is unchanged afterwards. The weights and the
            cache of the graph have its dtype, fp32 or fp16.
        target: File to write. Weights above the limit of protobuf are written beside it.
        opset: ONNX operator set.

    Returns:
        The layout of the graph.

    Raises:
        ExportError: The architecture cannot be exported.
    """
    if any(getattr(model.config, name, None) for name in EXPERTS):
        raise ExportError(
            f"the architecture {model.config.model_type!r} is a mixture of experts, whose choice of experts cannot be traced",
            hint=TESTED,
        )
    attention = SlottedAttention()
    step = _DecoderStep(model, attention).eval()  # the tracer gives the model the mode of the step
    with attention.used_by(model), silence_exporters(), torch.no_grad():
        inputs = _example()
        try:
            logits = step(*inputs)[0]
        except TRACING_ERRORS as error:
            raise _not_exportable(model, error) from error
        layers = attention.require_layers(model)
        with tempfile.TemporaryDirectory(dir=_made(target.parent), prefix=".tracing.") as folder:
            traced = Path(folder) / "model.onnx"
            try:
                _trace(step, inputs, _empty_cache(layers, model.dtype), traced, opset)
            except TRACING_ERRORS as error:
                raise _not_exportable(model, error) from error
            decoder = graph.load(traced)
    shared = share_embeddings(decoder)
    graph.save(decoder, target)
    return DecoderLayout(
        layers=layers, vocabulary=int(logits.shape[-1]), max_tokens=max_tokens(model.config.to_dict()), shared_embeddings=shared
    )


def _not_exportable(model: Any, error: Exception) -> ExportError:
    reason = f"{type(error).__name__}: {first_line(error)}"
    return ExportError(f"the architecture {model.config.model_type!r} cannot be exported for generation: {reason}", hint=TESTED)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _example() -> tuple[torch.Tensor, ...]:
    """Return the inputs of a first step of two rows, of three tokens and of two."""
    return (
        torch.tensor([[5, 6, 7], [5, 6, 0]]),
        torch.tensor([[0, 1, 2], [0, 1, 2]]),
        torch.tensor([2, 1], dtype=torch.int32),
        torch.tensor(3, dtype=torch.int32),
    )


def _empty_cache(layers: Sequence[AttentionLayer], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return a cache for two rows by its names in the graph, without ``past.``."""
    return {
        f"{index}.{part}": torch.zeros(2, layer.kv_heads, CAPACITY, layer.head_size, dtype=dtype)
        for index, layer in enumerate(layers)
        for part in ("key", "value")
    }


def _trace(step: _DecoderStep, inputs: tuple[torch.Tensor, ...], cache: dict[str, torch.Tensor], path: Path, opset: int) -> None:
    axes: dict[str, dict[int, str]] = {
        "input_ids": {0: "rows", 1: "tokens"},
        "position_ids": {0: "rows", 1: "tokens"},
        "seqlens_k": {0: "rows"},
        "logits": {0: "rows"},
    }
    axes |= {f"{side}.{name}": {0: "rows", 2: "capacity"} for side in ("past", "present") for name in cache}
    torch.onnx.export(
        step,
        (*inputs, *cache.values()),
        str(path),
        input_names=["input_ids", "position_ids", "seqlens_k", "total_sequence_length", *(f"past.{name}" for name in cache)],
        output_names=["logits", *(f"present.{name}" for name in cache)],
        dynamic_axes=axes,
        opset_version=opset,
        dynamo=False,
        custom_opsets=CUSTOM_OPSETS,
    )


def max_tokens(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens a row of a decoder may have, prompt and answer together; None if there is no limit.

    The graph has the rotary frequencies of short rows, so a model that changes them for long ones is limited to short ones.

    Args:
        config: The checkpoint's ``config.json``.
    """
    positions = checkpoints.max_positions(config)
    scaling = config.get("rope_scaling") or {}
    setting = FIXED_LIMITS.get(str(scaling.get("rope_type", scaling.get("type"))))
    fixed = None if setting is None else config.get(setting, scaling.get(setting))
    limits = [limit for limit in (positions, fixed) if isinstance(limit, int)]
    return min(limits, default=None)
