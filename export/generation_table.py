"""Formats the figures of the variants of a model that generates as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from export.metric import shown
from serving.options import Precision
from serving.reporting import plural

if TYPE_CHECKING:
    from serving.manifests import BundleManifest, GenerationVariantFigures, SpeedFigures


def generation_table(manifest: BundleManifest, figures: Mapping[Precision, GenerationVariantFigures]) -> list[str]:
    """Return one line for the original and for each variant, and what the columns mean.

    Args:
        manifest: The manifest of the bundle.
        figures: Figures of its variants.
    """
    original, metric = manifest.original, manifest.main_metric
    width = max(9, len(metric))
    heads = f"{'agreement':>10} {'answers':>8} {'logit diff':>10}"
    titles = [f"{'':8} {metric:>{width}} {heads} {'MB':>7} {'ms':>7} {'tokens/s':>9} {'of 16':>7}"]
    perfect = f"{1:>10.2%} {1:>8.1%} {'0':>10}"
    return [
        *titles,
        _line("PyTorch", metric, width, original, original.bytes, perfect),
        *(_line(name, metric, width, one, one.bytes, _compared(one)) for name, one in figures.items()),
        f"on {original.rows} {plural(original.rows, 'row')}; agreement: of the most likely next token, read from the true text; "
        "answers: generated without sampling that are equal",
        "logit diff: largest; ms: one token of one sequence; tokens/s: of one sequence, and of 16 together, one thread",
    ]


def _compared(found: GenerationVariantFigures) -> str:
    difference = shown(found.max_logit_difference, ".2g")
    return f"{found.next_token_agreement:>10.2%} {found.equal_answers:>8.1%} {difference:>10}"


def _line(title: str, metric: str, width: int, figures: SpeedFigures, size: int, compared: str) -> str:
    alone, together = figures.throughput.one_by_one, figures.throughput.batched
    main = shown(figures.metrics[metric], ".4f")
    return f"{title:8} {main:>{width}} {compared} {size / 1e6:7.1f} {figures.latency_ms:7.2f} {alone:9.0f} {together:7.0f}"
