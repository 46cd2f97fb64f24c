"""Formats the figures of a bundle's variants as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from export.generation_table import generation_table
from export.metric import shown
from serving.manifests import GenerationVariantFigures, VariantFigures
from serving.options import CPU_PRECISIONS, Precision
from serving.reporting import plural

if TYPE_CHECKING:
    from serving.manifests import BundleManifest, SpeedFigures, VariantRecord

WIDTHS = {"agreement": 10, "rows": 7, "score change": 15, "logit diff": 10}
"""The columns that compare a variant with PyTorch. ``rows`` is left out if the agreement compares whole answers already."""


def variant_table(manifest: BundleManifest) -> list[str]:
    """Return one line for the original and for each variant, what the columns mean, and how many near ties count as agreeing."""
    metric, original = manifest.main_metric, manifest.original
    generation = {
        name: one.figures for name, one in manifest.precisions.items() if isinstance(one.figures, GenerationVariantFigures)
    }
    if generation:
        return generation_table(manifest, generation)
    figures = {name: one.figures for name, one in manifest.precisions.items() if isinstance(one.figures, VariantFigures)}
    by_row = any(found.row_agreement is not None for found in figures.values())
    columns = [name for name in WIDTHS if by_row or name != "rows"]
    width = max(8, *map(len, figures))
    perfect = {"agreement": "100.00%", "rows": "100.0%", "score change": "0", "logit diff": "0"}
    lines = [
        f"{'':{width}} {metric:>9} {_aligned(columns, {name: name for name in columns})} {'MB':>7} {'ms':>7} {'rows/s':>7}",
        _line("PyTorch".ljust(width), metric, original, original.bytes, _aligned(columns, perfect)),
        *(_line(name.ljust(width), metric, one, one.bytes, _aligned(columns, _compared(one))) for name, one in figures.items()),
        f"on {original.rows} {plural(original.rows, 'row')}{'; rows: whose whole answer agrees' if by_row else ''}; "
        "score change: of the label that PyTorch gives, 99th percentile (largest)",
        f"logit diff: largest; speed of the model alone, one row at a time, {speed_devices(manifest.precisions)}",
    ]
    if "int8_rowwise" in figures:
        changes = (f"{name} {shown(figures[name].max_batch_difference, '.2g')}" for name in CPU_PRECISIONS if name in figures)
        lines.append(f"largest change of a logit by the other rows of a batch: {', '.join(changes)}")
    for precision, found in figures.items():
        if found.ties:
            lines.append(f"{precision}: {found.ties} near {'tie counts' if found.ties == 1 else 'ties count'} as agreeing")
    return lines


def _aligned(columns: Sequence[str], cells: Mapping[str, str]) -> str:
    return " ".join(f"{cells[name]:>{WIDTHS[name]}}" for name in columns)


def _compared(found: VariantFigures) -> dict[str, str]:
    return {
        "agreement": f"{found.label_agreement:.2%}",
        "rows": "-" if found.row_agreement is None else f"{found.row_agreement:.1%}",
        "score change": "-" if found.max_score_change is None else f"{found.p99_score_change:.2g} ({found.max_score_change:.2g})",
        "logit diff": shown(found.max_logit_difference, ".2g"),
    }


def _line(title: str, metric: str, figures: SpeedFigures, size: int, compared: str) -> str:
    main, latency, throughput = shown(figures.metrics[metric], ".4f"), figures.latency_ms, figures.throughput.one_by_one
    return f"{title} {main:>9} {compared} {size / 1e6:7.1f} {latency:7.2f} {throughput:7.0f}"


def speed_devices(records: Mapping[Precision, VariantRecord]) -> str:
    """Describe where the speeds were measured, because speeds of different devices must not be compared."""
    on_gpu = [precision for precision, record in records.items() if record.figures.speed_device == "gpu"]
    others = [precision for precision in records if precision not in on_gpu]
    if not on_gpu:
        return "one thread"
    on_cpu = f"; {', '.join(others)} on one CPU thread, which is not comparable" if others else ""
    return f"PyTorch, {', '.join(on_gpu)} on the GPU{on_cpu}"
