"""Make and verify the variants of an encoder-decoder: two graphs per precision, compared with the original. Imports torch."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export import graph
from export.generation.decoder_gates import GenerationFigures, generation_figures, perplexity
from export.generation.decoding_speed import ROWS_TOGETHER, DecodingSpeed, Write, decoding_speeds
from export.generation.encoder_decoder_comparison import compare_beam_answers, compare_greedy_answers, compare_next_tokens
from export.generation.encoder_decoder_gates import (
    BeamComparison,
    EncoderDecoderLimits,
    TextComparison,
    TextMetric,
    compare_texts,
    encoder_decoder_gates,
)
from export.generation.encoder_decoder_graph import EncoderDecoderGraphs, export_encoder_decoder
from export.generation.encoder_decoder_rows import EncoderDecoderGeneration, EncoderDecoderRows
from export.generation.original_encoder_decoder import OriginalEncoderDecoder
from export.generation.served_encoder_decoder import ServedEncoderDecoder
from export.long_steps import tracked
from export.original import one_thread
from export.rowwise_int8 import quantize_rowwise
from serving.errors import DataError, ExportError
from serving.manifests import VariantGate
from serving.options import Precision
from serving.reporting import logger
from serving.runtime.types import JsonValue

OPSET = 18
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
COMPARED_ROWS, TARGET_TOKENS = 128, 64
"""Maximum number of rows whose next tokens are compared, and of the tokens of each."""
ANSWERED_ROWS, ANSWER_TOKENS = 100, 64
"""Maximum number of rows whose texts are compared, and of the tokens of each."""
EQUAL_ROWS = 16
"""Number of answers that are compared token by token, greedily and by beam search."""
BEAMS = 4
"""Beams of that search, where the checkpoint has none."""


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderVariant:
    """A variant that was made and verified.

    Attributes:
        file: Path of ``decoder.onnx`` relative to the bundle; ``encoder.onnx`` is beside it.
        figures: How its next tokens and greedy answers compare with the original's.
        beams: How its answers by beam search do.
        texts: How its texts do, with the settings that are served.
        gates: The gates.
        speed: Its speed, greedily.
        bytes: Size of both graphs with their weights, bytes.
    """

    file: str
    figures: GenerationFigures
    beams: BeamComparison
    texts: TextComparison
    gates: tuple[VariantGate, ...]
    speed: DecodingSpeed
    bytes: int

    @property
    def passed(self) -> bool:
        """Whether all gates held."""
        return all(gate.passed for gate in self.gates)


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderExport:
    """What :func:`build_encoder_decoder` made.

    Attributes:
        max_source_tokens: Positions of the encoder. None: any number.
        max_target_tokens: Positions of the decoder, start tokens included. None: any number.
        variants: The variants by precision.
        rows: Number of rows whose next tokens were compared.
        tokens: Number of these tokens.
        perplexity: Their perplexity by the original.
        speed: Speed of the original by ``generate``.
    """

    max_source_tokens: int | None
    max_target_tokens: int | None
    variants: dict[Precision, EncoderDecoderVariant]
    rows: int
    tokens: int
    perplexity: float
    speed: DecodingSpeed


@dataclass(frozen=True, kw_only=True)
class _VerificationContext:
    """What the verification of each variant needs."""

    rows: EncoderDecoderRows
    generation: EncoderDecoderGeneration
    texts: TextMetric
    limits: EncoderDecoderLimits
    new_tokens: int
    staging: Path

    @property
    def served(self) -> dict[str, JsonValue]:
        return self.generation.limited(self.new_tokens)

    @property
    def greedy(self) -> dict[str, JsonValue]:
        return self.generation.limited(self.new_tokens, num_beams=1)

    @property
    def beams(self) -> dict[str, JsonValue]:
        beams = self.generation.settings.get("num_beams")
        return self.generation.limited(self.new_tokens, num_beams=beams if isinstance(beams, int) and beams > 1 else BEAMS)

    def variant(self, precision: Precision, *, threads: int) -> ServedEncoderDecoder:
        """Load the graphs of a variant."""
        folder, start = self.staging / precision, self.generation.start
        return ServedEncoderDecoder(
            folder / "encoder.onnx",
            folder / "decoder.onnx",
            start,
            rows=ROWS_TOGETHER,
            capacity=len(start) + max(self.new_tokens, *map(len, self.rows.targets)),
            source_capacity=max(map(len, self.rows.sources)),
            threads=threads,
        )


def build_encoder_decoder(
    model: Any,
    rows: EncoderDecoderRows,
    generation: EncoderDecoderGeneration,
    staging: Path,
    *,
    precisions: Sequence[Precision],
    texts: TextMetric,
    limits: EncoderDecoderLimits | None = None,
    opset: int = OPSET,
) -> EncoderDecoderExport:
    """Write ``<staging>/<precision>/encoder.onnx`` and ``decoder.onnx``, and verify each pair.

    The graphs of a variant that fails a gate stay; the caller removes them.

    Args:
        model: The model of ``transformers``, see :func:`~.encoder_decoder_graph.load_encoder_decoder`.
        rows: What to verify on.
        generation: How answers are generated.
        staging: Folder of the bundle.
        precisions: The variants.
        texts: The metric of generated texts.
        limits: Limits of the gates; None: the defaults.
        opset: ONNX operator set.

    Returns:
        What was made, with figures and gates.

    Raises:
        ExportError: The architecture or a precision cannot be exported, or ONNX Runtime cannot run a graph.
        DataError: There are no rows to verify on.
    """
    if unknown := [precision for precision in precisions if precision not in PRECISIONS]:
        raise ExportError(f"encoder-decoders are exported in {' and '.join(PRECISIONS)}, not in {unknown[0]}")
    if not len(rows):
        raise DataError("there are no rows to verify on", hint="give held-out rows")
    original = OriginalEncoderDecoder(model, generation.start)
    staging.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=staging, prefix=".tracing.") as folder:
        traced = export_encoder_decoder(model, Path(folder), opset=opset)
        room = (traced.max_target_tokens or ANSWER_TOKENS + len(generation.start)) - len(generation.start)
        context = _VerificationContext(
            rows=rows.cut(COMPARED_ROWS, target_tokens=min(TARGET_TOKENS, room), source_tokens=traced.max_source_tokens),
            generation=generation,
            texts=texts,
            limits=limits or EncoderDecoderLimits(),
            new_tokens=min(ANSWER_TOKENS, room),
            staging=staging,
        )
        for precision in precisions:
            _make(precision, traced, staging / precision)
    logger.info("generating the answers of PyTorch")
    expected = _expected(original, context)
    verified = {precision: _verify(precision, original, expected, context) for precision in precisions}
    logger.info("measuring speed")
    speeds = _speeds(original, precisions, context)
    first = verified[precisions[0]]
    return EncoderDecoderExport(
        max_source_tokens=traced.max_source_tokens,
        max_target_tokens=traced.max_target_tokens,
        variants={precision: found.variant(precision, staging, speeds[precision]) for precision, found in verified.items()},
        rows=len(context.rows),
        tokens=first.tokens,
        perplexity=first.original_perplexity,
        speed=speeds["original"],
    )


def _make(precision: Precision, traced: EncoderDecoderGraphs, folder: Path) -> None:
    """Write the two graphs of a variant."""
    logger.info(f"exporting {precision}")
    folder.mkdir(parents=True, exist_ok=True)
    for path in (traced.encoder, traced.decoder):
        if precision == "int8":
            quantize_rowwise(path, folder / path.name)
        else:
            graph.save(graph.load(path), folder / path.name)


@dataclass(frozen=True, kw_only=True)
class _ExpectedAnswers:
    """Answers to the first rows: greedily, by beam search, and the texts with the settings that are served."""

    greedy: list[list[int]]
    beams: list[list[int]]
    texts: list[str]


@dataclass(frozen=True, kw_only=True)
class _Verification:
    """A variant without its speed."""

    figures: GenerationFigures
    beams: BeamComparison
    texts: TextComparison
    gates: tuple[VariantGate, ...]
    original_perplexity: float
    tokens: int

    def variant(self, precision: Precision, staging: Path, speed: DecodingSpeed) -> EncoderDecoderVariant:
        folder = staging / precision
        return EncoderDecoderVariant(
            file=f"{precision}/decoder.onnx",
            figures=self.figures,
            beams=self.beams,
            texts=self.texts,
            gates=self.gates,
            speed=speed,
            bytes=sum(graph.size(folder / name) for name in ("encoder.onnx", "decoder.onnx")),
        )


def _expected(original: OriginalEncoderDecoder, context: _VerificationContext) -> _ExpectedAnswers:
    sources = context.rows.sources
    return _ExpectedAnswers(
        greedy=[original.answer(source, context.greedy) for source in tracked(sources[:EQUAL_ROWS], "greedy answers")],
        beams=[original.answer(source, context.beams) for source in tracked(sources[:EQUAL_ROWS], "answers by beam search")],
        texts=[
            context.generation.decode(original.answer(source, context.served))
            for source in tracked(sources[:ANSWERED_ROWS], "served answers")
        ],
    )


def _verify(
    precision: Precision, original: OriginalEncoderDecoder, expected: _ExpectedAnswers, context: _VerificationContext
) -> _Verification:
    logger.info(f"verifying {precision}")
    sources, served = context.rows.sources, context.variant(precision, threads=0)
    comparison = compare_next_tokens(original, served, context.rows)
    if not np.isfinite(comparison.original_losses).all():
        raise ExportError(
            "the PyTorch checkpoint gives NaN or infinite logits", hint="its weights are damaged, or its training diverged"
        )
    together = served.answers(sources[:EQUAL_ROWS], context.greedy)
    alone = [served.answers([source], context.greedy)[0] for source in tracked(sources[:EQUAL_ROWS], f"answers of {precision}")]
    figures = generation_figures(
        comparison,
        compare_greedy_answers(original, sources[:EQUAL_ROWS], expected.greedy, together),
        answers_alone_equal=sum(one == other for one, other in zip(alone, together, strict=True)),
    )
    beams = compare_beam_answers(
        original,
        sources[:EQUAL_ROWS],
        expected.beams,
        served.answers(sources[:EQUAL_ROWS], context.beams),
        length_penalty=context.generation.length_penalty,
    )
    found = [context.generation.decode(answer) for answer in served.answers(sources[:ANSWERED_ROWS], context.served)]
    texts = compare_texts(context.texts, expected.texts, found, context.rows.references[:ANSWERED_ROWS])
    return _Verification(
        figures=figures,
        beams=beams,
        texts=texts,
        gates=encoder_decoder_gates(precision, figures, beams, texts, context.limits, largest_logit=comparison.largest_logit),
        original_perplexity=perplexity(comparison.original_losses),
        tokens=len(comparison.rows),
    )


def _speeds(
    original: OriginalEncoderDecoder, precisions: Sequence[Precision], context: _VerificationContext
) -> dict[str, DecodingSpeed]:
    """Measure greedy answers of a fixed number of tokens."""
    source = max(context.rows.sources, key=len)

    def settings(count: int) -> dict[str, JsonValue]:
        return {"num_beams": 1, "do_sample": False, "max_new_tokens": count, "eos_token_id": None}

    def writer(served: ServedEncoderDecoder) -> Write:
        return lambda sources, count: served.answers(sources, settings(count))

    writers: dict[str, Write] = {"original": lambda sources, count: original.answers(sources, settings(count))}
    writers |= {precision: writer(context.variant(precision, threads=1)) for precision in precisions}
    with one_thread():
        return decoding_speeds(writers, source, new_tokens=context.new_tokens)
