"""Export an encoder-decoder to ``encoder.onnx`` and ``decoder.onnx``. Imports torch.

The encoder computes the keys and values of every cross attention once a source. The decoder computes one step; its rows belong to
different requests and are at positions of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from export import graph
from export.convert import silence_exporters
from export.generation.encoder_decoder_modules import (
    CachedCrossAttention,
    LastTokenHead,
    PositionTable,
    Projections,
    Replacement,
    SlottedSelfAttention,
    TracedStep,
    replaced,
)
from export.generation.group_query_attention import CUSTOM_OPSETS
from export.generation.tied_embeddings import share_embeddings
from serving.errors import ExportError, first_line

FAMILIES = ("bart", "blenderbot", "blenderbot-small", "longt5", "m2m_100", "marian", "mbart", "mt5", "pegasus", "t5", "umt5")
"""Values of ``model_type`` whose graphs are exact."""
STEP_INPUTS = ("input_ids", "position_ids", "seqlens_k", "total_sequence_length", "encoder_mask")


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderGraphs:
    """What was written.

    Attributes:
        encoder: The file ``encoder.onnx``.
        decoder: The file ``decoder.onnx``.
        max_source_tokens: Positions of the encoder. None: any number.
        max_target_tokens: Positions of the decoder. None: any number.
    """

    encoder: Path
    decoder: Path
    max_source_tokens: int | None
    max_target_tokens: int | None


def require_family(model_type: str) -> None:
    """Check that a family can be exported.

    Raises:
        ExportError: It cannot. The message lists those that can.
    """
    if model_type not in FAMILIES:
        raise ExportError(
            f"encoder-decoders of the architecture {model_type!r} cannot be exported", hint=f"{', '.join(FAMILIES)} can"
        )


def load_encoder_decoder(checkpoint: Path) -> Any:
    """Load a checkpoint in fp32 for export.

    Raises:
        ExportError: Its architecture cannot be exported.
    """
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    require_family(str(AutoConfig.from_pretrained(checkpoint, trust_remote_code=False).model_type))
    return AutoModelForSeq2SeqLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False, use_safetensors=True
    ).eval()


def export_encoder_decoder(model: Any, folder: Path, *, opset: int) -> EncoderDecoderGraphs:
    """Write both graphs of a model in fp32. The model is the same afterwards.

    Args:
        model: The model in fp32, in evaluation mode, with ``attn_implementation="eager"``.
        folder: Folder for the graphs.
        opset: ONNX operator set.

    Returns:
        The files and the lengths that the model takes.

    Raises:
        ExportError: The architecture cannot be exported, or tracing failed.
    """
    require_family(str(model.config.model_type))
    folder.mkdir(parents=True, exist_ok=True)
    encoder, decoder = folder / "encoder.onnx", folder / "decoder.onnx"
    try:
        with torch.no_grad(), silence_exporters():
            cross = _export_encoder(model, encoder, opset)
            _export_decoder(model, decoder, cross, opset)
        stepping = graph.load(decoder)
        if share_embeddings(stepping):
            graph.save(stepping, decoder)
    except (ValueError, KeyError, TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise ExportError(
            f"the encoder-decoder {model.config.model_type!r} could not be exported: {type(error).__name__}: {first_line(error)}"
        ) from error
    return EncoderDecoderGraphs(
        encoder=encoder,
        decoder=decoder,
        max_source_tokens=_positions(model.get_encoder()),
        max_target_tokens=_positions(model.get_decoder()),
    )


def _positions(half: Any) -> int | None:
    return PositionTable(half.embed_positions).length if hasattr(half, "embed_positions") else None


def _layers(model: Any) -> list[tuple[nn.Module, str, nn.Module, str]]:
    """Find the parents and the attributes of the self attention and of the cross attention of each layer of the decoder."""
    decoder = model.get_decoder()
    if hasattr(decoder, "block"):
        return [(block.layer[0], "SelfAttention", block.layer[1], "EncDecAttention") for block in decoder.block]
    return [(layer, "self_attn", layer, "encoder_attn") for layer in decoder.layers]


class _Encoder(nn.Module):  # type: ignore[misc]  # torch is untyped
    """Text to the keys and values of every cross attention."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.get_encoder()
        self.block = getattr(self.encoder, "block_len", 0)
        self.attentions = nn.ModuleList(getattr(parent, name) for _, _, parent, name in _layers(model))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        source = input_ids.shape[1]
        if self.block:  # of LongT5: tracing cannot decide whether to pad, so the graph always does
            padding = -source % self.block
            input_ids, attention_mask = (nn.functional.pad(tensor, (0, padding)) for tensor in (input_ids, attention_mask))
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0][:, :source]
        parts = [Projections.of(attention) for attention in self.attentions]
        return tuple(part.split(project(hidden)) for part in parts for project in (part.key, part.value))


class _Step(nn.Module):  # type: ignore[misc]  # torch is untyped
    """One step of the decoder, whose modules are replaced."""

    def __init__(self, model: Any, replacements: Sequence[Replacement], layers: int) -> None:
        super().__init__()
        self.model = model
        self.replacements = tuple(replacements)
        self.layers = layers

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        seqlens_k: torch.Tensor,
        total_sequence_length: torch.Tensor,
        encoder_mask: torch.Tensor,
        *cross_and_past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        from transformers.modeling_outputs import BaseModelOutput

        step = TracedStep(
            input_ids=input_ids,
            position_ids=position_ids,
            seqlens_k=seqlens_k,
            total_sequence_length=total_sequence_length,
            encoder_mask=encoder_mask,
            cross=cross_and_past[: 2 * self.layers],
            past=cross_and_past[2 * self.layers :],
        )
        for replacement in self.replacements:
            replacement.attach(step)
        unread = torch.zeros(1, 1, self.model.config.d_model).expand(input_ids.shape[0], 1, -1)
        output = self.model(encoder_outputs=BaseModelOutput(last_hidden_state=unread), decoder_input_ids=input_ids, use_cache=False)
        return (output.logits, *step.present)


def _names(prefix: str, layers: int) -> list[str]:
    return [f"{prefix}.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def _export_encoder(model: Any, path: Path, opset: int) -> tuple[torch.Tensor, ...]:
    """Write the encoder, and return its outputs for the example of two rows."""
    encoder = _Encoder(model).eval()  # the exporter restores this mode, in all of the model
    names = _names("cross", len(encoder.attentions))
    example = (torch.tensor([[5, 6, 7, 8], [5, 6, 2, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]))
    inputs = ["input_ids", "attention_mask"]
    torch.onnx.export(
        encoder,
        example,
        str(path),
        input_names=inputs,
        output_names=names,
        dynamic_axes={name: {0: "rows", 1: "source"} for name in inputs} | {name: {0: "rows", 2: "source"} for name in names},
        opset_version=opset,
        dynamo=False,
    )
    result: tuple[torch.Tensor, ...] = encoder(*example)
    return result


def _export_decoder(model: Any, path: Path, cross: Sequence[torch.Tensor], opset: int) -> None:
    layers = _layers(model)
    cross_names, past, present = (_names(prefix, len(layers)) for prefix in ("cross", "past", "present"))
    rows, heads, source, head_size = cross[0].shape
    capacity, tokens = 8, 2  # any: these axes are dynamic
    example = (
        torch.full((rows, tokens), 5),
        torch.arange(tokens).expand(rows, tokens).contiguous(),
        torch.full((rows,), tokens - 1, dtype=torch.int32),
        torch.tensor(tokens, dtype=torch.int32),
        torch.ones(rows, source),
        *cross,
        *(torch.zeros(rows, heads, capacity, head_size) for _ in past),
    )
    by_row = {name: {0: "rows", 1: "tokens"} for name in ("input_ids", "position_ids")}
    by_row |= {"seqlens_k": {0: "rows"}, "logits": {0: "rows"}, "encoder_mask": {0: "rows", 1: "source"}}
    places = _places(model, layers)
    with replaced(places):
        torch.onnx.export(
            _Step(model, [replacement for _, _, replacement in places], len(layers)).eval(),
            example,
            str(path),
            input_names=[*STEP_INPUTS, *cross_names, *past],
            output_names=["logits", *present],
            dynamic_axes=by_row
            | {name: {0: "rows", 2: "source"} for name in cross_names}
            | {name: {0: "rows", 2: "capacity"} for name in (*past, *present)},
            opset_version=opset,
            dynamo=False,
            custom_opsets=CUSTOM_OPSETS,
        )


def _places(model: Any, layers: Sequence[tuple[nn.Module, str, nn.Module, str]]) -> list[tuple[nn.Module, str, Replacement]]:
    places: list[tuple[nn.Module, str, Replacement]] = [(model, "lm_head", LastTokenHead(model.lm_head))]
    decoder = model.get_decoder()
    if hasattr(decoder, "embed_positions"):
        places.append((decoder, "embed_positions", PositionTable(decoder.embed_positions)))
    for at, (inner, inner_name, outer, outer_name) in enumerate(layers):
        places.append((inner, inner_name, SlottedSelfAttention(getattr(inner, inner_name), at)))
        places.append((outer, outer_name, CachedCrossAttention(getattr(outer, outer_name), at)))
    return places
