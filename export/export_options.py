"""Options of the export stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.data import Columns
from serving.bundle import PRECISIONS
from serving.manifests import Precision


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of the stage.

    Args:
        name: of the artifact.
        task: as in ``serving.runtime.tasks.names()``.
        checkpoint: location as ``export.sources`` reads it; None: what ``finetune`` left under ``name``.
        test: labelled rows to verify on; None: those that ``finetune`` left in the checkpoint.
        setting: the task's settings chosen, by name, over those that the checkpoint says and those chosen in fine-tuning.
        precision: variants asked for, of ``serving.bundle.PRECISIONS``; empty: all. fp32 is always made, and what an up-to-date
            bundle holds already is kept.
        max_length: tokens kept of a row; None: as fine-tuned, else what the model takes (512 where it takes any number).
        max_metric_drop: points (hundredths) of the main metric that a variant may lose.
        min_agreement: share of labels that must equal the original's; None: 0.995 for fp16, 0.97 for int8. fp32: always 1.
        verify_rows: at most so many rows are verified on, drawn at random; fewer than ``verify.MIN_ROWS`` prove little.
        opset: of the ONNX graphs.
        device: ``auto``, ``cpu`` or ``gpu``: where variants are verified.
        force: export even where the artifact is up to date.
    """

    name: str
    task: str
    checkpoint: str | None = None
    test: str | None = None
    columns: Columns = field(default_factory=Columns)
    setting: Mapping[str, Any] = field(default_factory=dict)
    precision: tuple[str, ...] = ()
    max_length: int | None = None
    max_metric_drop: float = 0.5
    min_agreement: float | None = None
    verify_rows: int = 1000
    opset: int = 18
    device: str = "auto"
    seed: int = 0
    artifacts: Path = Path("artifacts")
    force: bool = False

    @property
    def target(self) -> Path:
        """The artifact's folder."""
        return self.artifacts / self.name / "bundle"

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Variants to make, fp32 first."""
        wanted = {"fp32", *(self.precision or PRECISIONS)}
        return tuple(precision for precision in PRECISIONS if precision in wanted)
