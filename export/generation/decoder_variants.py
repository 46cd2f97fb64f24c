"""Make and verify the variants of a decoder: one graph per precision, compared with the PyTorch original. Imports torch."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export import graph, optimize
from export.generation.decoder_gates import GenerationFigures, GenerationLimits, generation_figures, generation_gates, perplexity
from export.generation.decoder_graph import OPSET, DecoderLayout, export_decoder, max_tokens
from export.generation.decoding_speed import ROWS_TOGETHER, DecodingSpeed, Write, decoding_speeds
from export.generation.original_decoder import OriginalDecoder
from export.generation.slotted_decoder import SlottedDecoder
from export.generation.token_comparison import compare_greedy, compare_tokens
from export.long_steps import tracked
from export.original import one_thread
from export.rowwise_int8 import quantize_rowwise
from serving.errors import DataError, ExportError
from serving.manifests import VariantGate
from serving.options import Precision
from serving.reporting import logger

ROW_TOKENS, ALL_TOKENS = 128, 8192
"""Maximum number of tokens per row, and of all rows, that the variants are verified on: each token is a step of a model."""
GREEDY_PROMPTS, GREEDY_TOKENS = 16, 32
"""Number of greedy answers and their maximum number of tokens."""
PROMPT_TOKENS = 64
"""Maximum number of tokens of a prompt, the first half of a row."""


@dataclass(frozen=True, kw_only=True)
class DecoderRows:
    """What a decoder is verified on.

    Attributes:
        rows: Tokens of held-out texts, as the model gets them, at least two each.
        end: Tokens that end an answer.
    """

    rows: Sequence[Sequence[int]]
    end: Sequence[int]

    def within(self, limit: int | None) -> DecoderRows:
        """Return the first rows, cut to the tokens that are verified.

        Args:
            limit: Maximum tokens of a row of the model; None: no limit.

        Raises:
            DataError: No row has two tokens.
        """
        longest = min(ROW_TOKENS, limit or ROW_TOKENS)
        kept: list[Sequence[int]] = []
        for row in self.rows:
            if len(row) >= 2 and sum(map(len, kept)) < ALL_TOKENS:
                kept.append(list(row[:longest]))
        if not kept:
            raise DataError("no row to verify on has two tokens", hint="give longer texts")
        return DecoderRows(rows=kept, end=self.end)

    def prompts(self) -> list[Sequence[int]]:
        """Return the beginnings of the first rows."""
        return [row[: min(PROMPT_TOKENS, len(row) // 2)] for row in self.rows[:GREEDY_PROMPTS]]

    def new_tokens(self, limit: int | None) -> int:
        """Return how many tokens can be appended to each prompt, up to a limit of the model."""
        return min(GREEDY_TOKENS, (limit or ROW_TOKENS) - max(map(len, self.prompts())))


@dataclass(frozen=True, kw_only=True)
class DecoderVariant:
    """A variant that was made and verified.

    Attributes:
        file: Path of the graph relative to the bundle.
        figures: How it compares with the original.
        gates: The gates.
        speed: Its speed.
        bytes: Size of the graph with its weights, bytes.
        operators: Number of fused operators by type.
    """

    file: str
    figures: GenerationFigures
    gates: tuple[VariantGate, ...]
    speed: DecodingSpeed
    bytes: int
    operators: dict[str, int]

    @property
    def passed(self) -> bool:
        """Whether all gates held."""
        return all(gate.passed for gate in self.gates)


@dataclass(frozen=True, kw_only=True)
class DecoderExport:
    """What :func:`build_decoder` made.

    Attributes:
        layout: Layout of the graphs.
        variants: The variants by precision.
        rows: Number of rows that they were verified on.
        tokens: Number of next tokens in these rows.
        perplexity: Perplexity of the rows by the original.
        speed: Speed of the original by ``generate``.
    """

    layout: DecoderLayout
    variants: dict[Precision, DecoderVariant]
    rows: int
    tokens: int
    perplexity: float
    speed: DecodingSpeed


@dataclass(frozen=True, kw_only=True)
class _Verified:
    """A variant without its speed."""

    figures: GenerationFigures
    gates: tuple[VariantGate, ...]
    original_perplexity: float
    tokens: int


def build_decoder(
    model: Any,
    rows: DecoderRows,
    staging: Path,
    *,
    precisions: Sequence[Precision],
    limits: GenerationLimits | None = None,
    opset: int = OPSET,
) -> DecoderExport:
    """Write ``<staging>/<precision>/model.onnx`` of a decoder, and verify each.

    The graph of a variant that fails a gate stays; the caller removes it.

    Args:
        model: The causal language model of ``transformers``, on the CPU, in fp32 and in evaluation mode.
        rows: What to verify on.
        staging: Folder of the bundle.
        precisions: The variants.
        limits: Limits of the gates; None: the defaults.
        opset: ONNX operator set.

    Returns:
        What was made, with figures and gates.

    Raises:
        ExportError: The architecture cannot be exported, or ONNX Runtime cannot run a graph.
        DataError: There are no rows to verify on.
    """
    original = OriginalDecoder(model)
    rows = rows.within(max_tokens(model.config.to_dict()))
    paths = {precision: staging / precision / "model.onnx" for precision in precisions}
    for precision, path in paths.items():
        logger.info(f"exporting {precision}")
        layout = _make(precision, model, path, opset)
    logger.info("generating the answers of PyTorch")
    prompts, new_tokens = rows.prompts(), rows.new_tokens(layout.max_tokens)
    expected = [original.greedy(prompt, new_tokens=new_tokens, end=rows.end) for prompt in tracked(prompts, "answers of PyTorch")]
    verified = {}
    for precision, path in paths.items():
        logger.info(f"verifying {precision}")
        verified[precision] = _verify(precision, original, path, rows, expected, new_tokens, limits or GenerationLimits())
    logger.info("measuring speed")
    speeds = _speeds(original, paths, rows, new_tokens)
    first = verified[precisions[0]]
    return DecoderExport(
        layout=layout,
        variants={
            precision: DecoderVariant(
                file=f"{precision}/model.onnx",
                figures=verified[precision].figures,
                gates=verified[precision].gates,
                speed=speeds[precision],
                bytes=graph.size(path),
                operators=optimize.operators(path),
            )
            for precision, path in paths.items()
        },
        rows=len(rows.rows),
        tokens=first.tokens,
        perplexity=first.original_perplexity,
        speed=speeds["original"],
    )


def _make(precision: Precision, model: Any, path: Path, opset: int) -> DecoderLayout:
    """Write the graph of a variant."""
    if precision == "fp16":  # traced in fp16, it keeps in fp32 what transformers does: the rotary angles, most norms
        return export_decoder(copy.deepcopy(model).half(), path, opset=opset)
    if precision == "fp32":
        return export_decoder(model, path, opset=opset)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fp32.") as folder:
        layout = export_decoder(model, Path(folder) / "model.onnx", opset=opset)
        quantize_rowwise(Path(folder) / "model.onnx", path)
    return layout


def _verify(
    precision: Precision,
    original: OriginalDecoder,
    path: Path,
    rows: DecoderRows,
    expected: Sequence[Sequence[int]],
    new_tokens: int,
    limits: GenerationLimits,
) -> _Verified:
    prompts = rows.prompts()
    capacity = max(*map(len, rows.rows), max(map(len, prompts)) + new_tokens)
    decoder = SlottedDecoder(path, rows=ROWS_TOGETHER, capacity=capacity)
    comparison = compare_tokens(original.logits, decoder, rows.rows, title=f"tokens of {precision}")
    if not np.isfinite(comparison.original_losses).all():
        raise ExportError(
            "the PyTorch checkpoint gives NaN or infinite logits", hint="its weights are damaged, or its training diverged"
        )
    together = decoder.greedy(prompts, new_tokens=new_tokens, end=rows.end)
    figures = generation_figures(
        comparison,
        compare_greedy(original.logits, prompts, expected, together),
        answers_alone_equal=_equal_alone(decoder, prompts, new_tokens, title=f"answers of {precision}"),
    )
    return _Verified(
        figures=figures,
        gates=generation_gates(precision, figures, limits, largest_logit=comparison.largest_logit),
        original_perplexity=perplexity(comparison.original_losses),
        tokens=len(comparison.rows),
    )


def _equal_alone(decoder: SlottedDecoder, prompts: Sequence[Sequence[int]], new_tokens: int, *, title: str) -> int:
    """Count the greedy answers that are the same alone and among the others.

    The prompts are cut to one length, because padding changes the order of the sums in attention, which is not quantized.
    """
    length = min(map(len, prompts))
    cut = [prompt[:length] for prompt in prompts]
    together = decoder.greedy(cut, new_tokens=new_tokens)
    alone = [decoder.greedy([prompt], new_tokens=new_tokens)[0] for prompt in tracked(cut, title)]
    return sum(one == other for one, other in zip(alone, together, strict=True))


def _speeds(
    original: OriginalDecoder, paths: Mapping[Precision, Path], rows: DecoderRows, new_tokens: int
) -> dict[str, DecodingSpeed]:
    prompt = rows.prompts()[0]

    def write_original(prompts: Sequence[Sequence[int]], count: int) -> object:
        return original.greedy_batch(prompts, new_tokens=count)

    def writer(decoder: SlottedDecoder) -> Write:
        return lambda prompts, count: decoder.greedy(prompts, new_tokens=count)

    writers: dict[str, Write] = {"original": write_original}
    for precision, path in paths.items():
        decoder = SlottedDecoder(
            path,
            rows=ROWS_TOGETHER,
            capacity=len(prompt) + new_tokens,
            threads=1,
        )
        writers[precision] = writer(decoder)
    with one_thread():
        return decoding_speeds(writers, prompt, new_tokens=new_tokens)
