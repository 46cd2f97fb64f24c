"""Makes the graph of a variant from the graph that was converted. Imports torch."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export import optimize, verify
from export.rows import EncodedRows
from export.rowwise_int8 import quantize_rowwise
from serving.manifests import VariantGate
from serving.options import Precision
from serving.runtime.types import Arrays

OVERFLOW_ROWS = 32
"""Number of the longest rows that are run with all intermediate tensors visible to find fp16 overflows.

Each is batched with one of the other rows, the shortest first, because attention masks overflow too, but only with padding.
"""
UNFUSED = "none: ONNX Runtime fuses it when it loads it"


@dataclass(frozen=True, kw_only=True)
class VariantGraph:
    """How a variant's graph was made.

    Attributes:
        fusion: The tool that fused it.
        fp32_nodes: Names of the nodes that stay in fp32.
        gates: Gates that only this precision has.
    """

    fusion: str
    fp32_nodes: tuple[str, ...] = ()
    gates: tuple[VariantGate, ...] = ()


def make_graph(precision: Precision, raw: Path, path: Path, *, checkpoint: Path, rows: EncodedRows) -> VariantGraph:
    """Write the graph of a variant.

    Args:
        precision: The variant.
        raw: The graph as it was converted.
        path: File to write.
        checkpoint: Folder of the checkpoint.
        rows: Rows to look for fp16 overflows with.

    Raises:
        ExportError: The graph could not be made.
    """
    match precision:
        case "fp32":
            return VariantGraph(fusion=optimize.fuse(raw, checkpoint, path))
        case "fp16":
            return _make_fp16(raw, path, checkpoint, rows)
        case "int8":
            optimize.to_int8(raw, path)
        case "int8_rowwise":
            quantize_rowwise(raw, path)
    return VariantGraph(fusion=UNFUSED)


def _make_fp16(raw: Path, path: Path, checkpoint: Path, rows: EncodedRows) -> VariantGraph:
    feeds = _overflow_feeds(rows)
    with tempfile.TemporaryDirectory() as folder:
        fused = Path(folder) / "model.onnx"
        fusion = optimize.fuse(raw, checkpoint, fused)
        fp32_nodes = optimize.to_fp16(fused, path, feeds)
        overflowed = optimize.overflowed_tensors(path, fused, feeds)
    return VariantGraph(fusion=fusion, fp32_nodes=tuple(fp32_nodes), gates=(verify.overflow_gate(overflowed),))


def _overflow_feeds(rows: EncodedRows) -> Sequence[Arrays]:
    order = rows.by_length()
    longest, others = order[:OVERFLOW_ROWS], order[OVERFLOW_ROWS:] or order
    partners = [others[-1 - index * len(others) // len(longest)] for index in range(len(longest))]
    return [rows.feed(pair) for pair in zip(longest, partners, strict=True)]
