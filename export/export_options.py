"""Options of the export stage. Light, so that ``--help`` is fast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from export.options import METRIC, TASK, StageOptions
from serving.option_fields import Option
from serving.options import MAX_LENGTH, MODEL_NAME, PRECISIONS, Force, Precision, Seed

DEFAULT_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
"""The variants that are exported unless the user names others.

Not ``int8_rowwise``: it takes as much room, and as long to make and verify, as ``int8``, which answers more rows per second on the
CPUs that both were measured on.
"""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(StageOptions):
    """Options of ``tritonize export``."""

    name: Annotated[str, replace(MODEL_NAME, default_text="as fine-tuned; otherwise that of the recipe file or checkpoint")] = ""
    task: Annotated[str, replace(TASK, default_text="as fine-tuned; otherwise by the checkpoint's architecture")] = ""
    metric: Annotated[
        str | None,
        replace(
            METRIC,
            help="Metric that the gates compare, such as f1_macro. An unknown name lists the metrics of the task.",
            default_text="that of fine-tuning, otherwise the task's",
        ),
    ] = None
    checkpoint: Annotated[
        str | None,
        Option(
            "Checkpoint to export: a folder, a name on the Hugging Face Hub, or quickstart:smollm2.",
            default_text="ARTIFACTS/NAME/checkpoint",
        ),
    ] = None
    test: Annotated[
        str | None, Option("Labelled rows to verify on, as for finetune.", default_text="the rows that finetune kept")
    ] = None
    max_length: Annotated[
        int | None,
        replace(MAX_LENGTH, default_text="as fine-tuned, otherwise the model's limit, at most 512 if it has none"),
    ] = None
    precision: Annotated[
        tuple[Precision, ...],
        Option(
            "Variants to export; fp32 is always exported. int8_rowwise is int8 whose answers do not depend on the batch. fp16 of "
            "models that generate runs on the CPU too, and is for text-generation only. The exit code is 1 if a variant named here "
            "fails its gates.",
            metavar="fp32|fp16|int8|int8_rowwise[,…]",
            commas=True,
            default_text="fp32,fp16,int8; of models that generate fp32,int8",
            shared=True,
        ),
    ] = ()
    max_metric_drop: Annotated[float, Option("Percentage points of the main metric that a variant may lose.", minimum=0)] = 0.5
    max_perplexity_increase: Annotated[
        float | None,
        Option(
            "Per cent of perplexity that a variant of a language model may gain; for fp32 it is always 0.1.",
            minimum=0,
            default_text="fp16 1, int8 5",
        ),
    ] = None
    min_agreement: Annotated[
        float | None,
        Option(
            "Minimum share of labels, or of next tokens, equal to the original's; for fp32 it is always 1.",
            minimum=0,
            maximum=1,
            default_text="fp16 0.995, int8 0.97; of next tokens 0.98, 0.8",
        ),
    ] = None
    min_row_agreement: Annotated[
        float | None,
        Option(
            "Minimum share of rows whose whole answer (all entities, the order of all candidate labels) equals the original's; for "
            "fp32 it is always 1.",
            minimum=0,
            maximum=1,
            default_text="fp16 0.99, int8 0.9; lower for more than three candidate labels",
        ),
    ] = None
    verify_rows: Annotated[int, Option("Maximum number of rows to verify on, drawn at random.", minimum=64)] = 1000
    opset: Annotated[int, Option("ONNX operator set.", minimum=17, maximum=18)] = 18
    seed: Seed = 0
    force: Force = False

    @property
    def target(self) -> Path:
        """The folder of the artifact."""
        return self.artifacts / self.name / "bundle"

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The variants to export, fp32 first."""
        return tuple(precision for precision in PRECISIONS if precision in {"fp32", *(self.precision or DEFAULT_PRECISIONS)})
