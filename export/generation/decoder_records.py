"""Makes the variants of a decoder for a bundle, and describes them for its manifest."""

from __future__ import annotations

import math

from export.generation.decoder_variants import DecoderExport, DecoderRows, DecoderVariant, build_decoder
from export.generation.made_variants import MadeVariants, VariantInputs, speed_figures
from serving.manifests import GenerationVariantFigures, ReferenceCheck, VariantRecord

METRIC = "perplexity"
"""The figure that the gates compare."""


def make_variants(inputs: VariantInputs) -> MadeVariants:
    """Write the graphs, verify them, and describe them.

    Raises:
        DataError: There are no rows to verify on.
        ExportError: A graph could not be made, or the original's outputs are NaN or infinite.
    """
    encodings = inputs.encoder.encode(list(inputs.rows.texts[0]), special_tokens=inputs.task.adds_special_tokens)
    rows = DecoderRows(rows=[encoding.ids for encoding in encodings], end=inputs.task.served.generation_options.eos_token_id)
    options = inputs.options
    made = build_decoder(
        inputs.model, rows, inputs.staging, precisions=options.precision, limits=inputs.limits, opset=options.opset
    )
    return MadeVariants(
        metric=METRIC,
        original=made.perplexity,
        rows=made.rows,
        speed=made.speed,
        records={precision: _record(variant, made) for precision, variant in made.variants.items()},
        reference=_reference(made),
        max_positions=made.layout.max_tokens,
    )


def _record(variant: DecoderVariant, made: DecoderExport) -> VariantRecord:
    figures, greedy = variant.figures, variant.figures.greedy
    values = {
        METRIC: figures.perplexity,
        "metric_drop": None if figures.perplexity_increase is None else 100 * figures.perplexity_increase,
        "next_token_agreement": figures.token_agreement,
        "equal_answers": (greedy.equal + greedy.ties) / greedy.answers,
        "max_logit_difference": figures.max_logit_difference,
        "cache_bytes": made.layout.cache_bytes_per_token,
        "bytes": variant.bytes,
        "operators": variant.operators,
    }
    return VariantRecord(
        file=variant.file,
        verdict="passed" if variant.passed else "failed",
        gates=variant.gates,
        figures=GenerationVariantFigures.model_validate(values | speed_figures(variant.speed)),
    )


def _reference(made: DecoderExport) -> ReferenceCheck:
    """Describe the comparison of the greedy answers of fp32 with those of ``transformers.generate``."""
    figures = made.variants["fp32"].figures
    difference = figures.max_logit_difference
    return ReferenceCheck(
        library="transformers.generate", texts=figures.greedy.answers, max_difference=math.inf if difference is None else difference
    )
