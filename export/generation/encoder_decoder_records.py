"""Makes the variants of an encoder-decoder for a bundle, and describes them for its manifest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import onnx

from export.generation.encoder_decoder_gates import EncoderDecoderLimits, TextMetric
from export.generation.encoder_decoder_rows import EncoderDecoderGeneration, EncoderDecoderRows
from export.generation.encoder_decoder_variants import (
    EncoderDecoderExport,
    EncoderDecoderVariant,
    build_encoder_decoder,
)
from export.generation.made_variants import MadeVariants, VariantInputs, speed_figures
from export.tasks._rewriting import RewritingTask
from serving.manifests import GenerationVariantFigures, ReferenceCheck, VariantRecord
from serving.runtime.generation.step_graph import PAST
from serving.runtime.types import JsonValue


def make_variants(inputs: VariantInputs) -> MadeVariants:
    """Write the graphs, verify them, and describe them.

    Raises:
        DataError: There are no rows to verify on.
        ExportError: A graph could not be made, or the original's outputs are NaN or infinite.
    """
    task, options = cast(RewritingTask, inputs.task), inputs.options
    made = build_encoder_decoder(
        inputs.model,
        _rows(inputs, task),
        EncoderDecoderGeneration(
            start=[task.served.decoder_start_token_id],
            settings=cast("dict[str, JsonValue]", dict(task.served.generation)),
            decode=partial(inputs.encoder.tokenizer.decode, skip_special_tokens=True),
        ),
        inputs.staging,
        precisions=options.precision,
        texts=TextMetric(name=task.metric, figure=task.main_metric),
        limits=EncoderDecoderLimits(tokens=inputs.limits, max_metric_drop=options.max_metric_drop),
        opset=options.opset,
    )
    positions = [limit for limit in (made.max_source_tokens, made.max_target_tokens) if limit is not None]
    first = next(iter(made.variants.values()))
    return MadeVariants(
        metric=task.main_metric,
        original=first.texts.original,
        rows=made.rows,
        speed=made.speed,
        records={precision: _record(variant, task.main_metric, inputs.staging) for precision, variant in made.variants.items()},
        reference=_reference(made),
        max_positions=min(positions, default=None),
    )


def _rows(inputs: VariantInputs, task: RewritingTask) -> EncoderDecoderRows:
    references = cast("Sequence[list[str]]", inputs.rows.labels)
    sources = inputs.encoder.encode(list(task.texts(inputs.rows.texts)))  # pairs do not exist
    targets = cast("Sequence[list[int]]", task.encode_targets(references, inputs.encoder))
    return EncoderDecoderRows(sources=[source.ids for source in sources], targets=targets, references=references)


def _record(variant: EncoderDecoderVariant, metric: str, staging: Path) -> VariantRecord:
    figures, beams = variant.figures, variant.beams
    values: dict[str, object] = {
        metric: variant.texts.variant,
        "metric_drop": variant.texts.drop,
        "next_token_agreement": figures.token_agreement,
        "equal_answers": (beams.equal + beams.ties) / beams.answers,
        "max_logit_difference": figures.max_logit_difference,
        "cache_bytes": cache_bytes(staging / variant.file),
        "bytes": variant.bytes,
        "operators": {},
    }
    return VariantRecord(
        file=variant.file,
        verdict="passed" if variant.passed else "failed",
        gates=variant.gates,
        figures=GenerationVariantFigures.model_validate(values | speed_figures(variant.speed)),
    )


def cache_bytes(decoder: Path) -> int:
    """Return the bytes that one token of a sequence takes in the fp32 cache of a decoder's graph."""
    inputs = onnx.load(str(decoder), load_external_data=False).graph.input
    shapes = [tensor.type.tensor_type.shape.dim for tensor in inputs if tensor.name.startswith(PAST)]
    return sum(4 * shape[1].dim_value * shape[3].dim_value for shape in shapes)


def _reference(made: EncoderDecoderExport) -> ReferenceCheck:
    """Describe the comparison of the answers of fp32 with those of ``transformers.generate``."""
    figures = made.variants["fp32"].figures
    difference = figures.max_logit_difference
    return ReferenceCheck(
        library="transformers.generate", texts=figures.greedy.answers, max_difference=math.inf if difference is None else difference
    )
