"""Options of the fine-tuning stage. Light, so that ``--help`` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from export.columns import Columns, HeldOutColumns
from export.options import METRIC, TASK, StageOptions
from export.training.hyperparameters import Adapter, Distillation, Hyperparameters
from serving.option_fields import Option
from serving.options import MAX_LENGTH, MODEL_NAME, Force


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(StageOptions):
    """Options of ``tritonize finetune``. Fields without a help text are no options themselves.

    Attributes:
        fixed: Names of the hyper-parameters that the user has set; the search leaves them as they are.
    """

    name: Annotated[str, replace(MODEL_NAME, default_text="that of the recipe file, otherwise of the training rows")] = ""
    task: Annotated[str, TASK] = "text-classification"
    metric: Annotated[
        str | None,
        replace(
            METRIC,
            help="Metric that chooses the best epoch, such as f1_macro. An unknown name lists the metrics of the task.",
            default_text="the task's",
        ),
    ] = None
    checkpoint: Annotated[
        str, Option("Checkpoint to train: a folder, a name on the Hugging Face Hub, quickstart:minilm, or quickstart:smollm2.")
    ]
    train: Annotated[
        str,
        Option(
            "Training rows: a csv, tsv, txt, json, jsonl, parquet or CoNLL file, a pattern or folder of such files, "
            "hub:NAME[/CONFIG][:SPLIT], or quickstart:reviews."
        ),
    ]
    validation: Annotated[
        str | None, Option("Validation rows; the best epoch is chosen by them.", default_text="a tenth of --train")
    ] = None
    test: Annotated[str | None, Option("Held-out test rows; used only for reporting.", default_text="none")] = None
    test_columns: HeldOutColumns = field(default_factory=HeldOutColumns)
    max_train_rows: Annotated[
        int | None, Option("Train on a random sample of this many rows.", minimum=2, default_text="all rows")
    ] = None
    max_length: Annotated[
        int | None,
        replace(MAX_LENGTH, default_text="the task's; more if rows are longer, up to the model's limit"),
    ] = None
    keep_leaks: Annotated[bool, Option("Keep training rows that also occur in the validation or test rows.")] = False
    training: Hyperparameters = field(default_factory=Hyperparameters)
    search: Annotated[int, Option("Number of hyper-parameter search trials before training; 0: no search.", minimum=0)] = 0
    fixed: tuple[str, ...] = ()
    adapter: Adapter | None = None
    distillation: Distillation | None = None
    report_to: Annotated[
        tuple[str, ...],
        Option(
            "Experiment tracker to report to, as in transformers: tensorboard, mlflow, wandb … Repeatable.",
            metavar="TRACKER",
        ),
    ] = ()
    force: Force = False

    @property
    def target(self) -> Path:
        """The folder of the artifact."""
        return self.artifacts / self.name / "checkpoint"

    @property
    def split_columns(self) -> dict[str, Columns]:
        """The columns that the user names, by split."""
        return {"train": self.columns, "validation": self.columns, "test": self.test_columns.over(self.columns)}
