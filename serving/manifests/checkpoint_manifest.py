"""What fine-tuning records about a checkpoint."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, JsonValue

from serving.manifests.manifest import Manifest, MetricRecord, Record, is_none


class UnknownTokens(Record):
    """The share of the training rows that the checkpoint's vocabulary does not have.

    Attributes:
        rows: Share of the rows that have an unknown token.
        tokens: Share of the tokens that are unknown.
        token: The unknown token.
        example: Tokens of a row around its first unknown one; empty if there is none.
    """

    rows: float
    tokens: float
    token: str
    example: str


class TrainingData(Record):
    """The rows that a checkpoint was fine-tuned on.

    Attributes:
        train: Location of the training rows.
        validation: Location of the validation rows, or a sentence that says how they were held out.
        test: Location of the test rows, if there were any.
        text_columns: Columns of the texts and of the choices.
        label_column: Column of the label; several columns if there is one for each label.
        label_shares: Share of the training rows that have each label; empty if the task has no labels to count.
        shared_rows: Number of validation and test rows that are training rows too, by split.
        leaks_kept: Whether those rows stayed in the training rows.
        contradicting_texts: Number of training texts that have more than one label.
        unknown_tokens: What the vocabulary lacks; absent if the tokenizer can write any text.
    """

    train: str
    validation: str
    test: str | None
    text_columns: tuple[str, ...]
    label_column: str | tuple[str, ...] | None
    label_shares: dict[str, float]
    shared_rows: dict[str, int]
    leaks_kept: bool
    contradicting_texts: int
    unknown_tokens: UnknownTokens | None = Field(default=None, exclude_if=is_none)


class AdapterRecord(Record):
    """The adapter that was trained in place of all weights: options as in ``export.training``."""

    method: str
    options: dict[str, JsonValue]
    load_in: str | None


class DistillationRecord(Record):
    """The teacher of a fine-tuning: options as in ``export.training``."""

    teacher: str
    temperature: float
    weight: float
    parts: int


class SearchFigures(MetricRecord):
    """The hyperparameter search before a fine-tuning; its metric is the best value of the main metric.

    Attributes:
        trials: Number of trials.
    """

    trials: int


class BaselineFigures(Record):
    """Figures of predictions that do not depend on the text.

    Attributes:
        description: What is predicted.
        validation: Metrics on the validation rows; a figure that is NaN or infinite is None.
        test: The same on the test rows; absent without test rows.
    """

    description: str
    validation: dict[str, float | None]
    test: dict[str, float | None] | None = Field(default=None, exclude_if=is_none)

    @property
    def splits(self) -> dict[str, dict[str, float | None]]:
        """Metrics by split: ``validation``, and ``test`` if there are test rows."""
        return by_split(self.validation, self.test)


class TrainingFigures(Record):
    """Figures of a fine-tuning.

    Attributes:
        parameters: Number of parameters of the model.
        trained_parameters: Number of parameters that were trained.
        best_epoch: The epoch that was kept, counted from 1.
        epochs: Number of epochs that were trained.
        steps: Number of optimizer steps.
        peak_rss_mib: Peak memory of the process, MiB.
        peak_gpu_mib: Peak memory that torch allocated on the GPU, MiB; absent without a GPU.
        merged_difference: Largest logit difference between the adapter and the merged weights; absent without an adapter.
        validation: Loss and metrics on the validation rows; a figure that is NaN or infinite is None.
        test: The same on the test rows; absent without test rows.
        interval: 95 % interval of the main metric on the test rows, or on the validation rows without test rows.
        rows: Number of rows by split.
        seconds: Duration of the training, s.
        search: The hyperparameter search; absent if there was none.
        baseline: Figures of the task's baseline; absent if it has none.
    """

    parameters: int
    trained_parameters: int
    best_epoch: int
    epochs: int
    steps: int
    peak_rss_mib: int
    peak_gpu_mib: int | None = Field(default=None, exclude_if=is_none)
    merged_difference: float | None = Field(default=None, exclude_if=is_none)
    validation: dict[str, float | None]
    test: dict[str, float | None] | None = Field(default=None, exclude_if=is_none)
    interval: tuple[float, float]
    rows: dict[str, int]
    seconds: float
    search: SearchFigures | None = Field(default=None, exclude_if=is_none)
    baseline: BaselineFigures | None = Field(default=None, exclude_if=is_none)

    @property
    def splits(self) -> dict[str, dict[str, float | None]]:
        """Loss and metrics by split: ``validation``, and ``test`` if there are test rows."""
        return by_split(self.validation, self.test)


def by_split(validation: dict[str, float | None], test: dict[str, float | None] | None) -> dict[str, dict[str, float | None]]:
    """Return figures by split, without the test rows if there are none."""
    return {"validation": validation} | ({} if test is None else {"test": test})


class CheckpointManifest(Manifest):
    """The manifest that ``tritonize finetune`` writes.

    Attributes:
        name: Name of the model.
        task: The task it was fine-tuned for.
        labels: Label names in the order of the model's outputs; empty if the task has none.
        settings: All settings of the task.
        chosen_settings: The settings that export takes over: those that the user chose and those that were fitted.
        fitted_settings: The settings that were fitted on the validation rows.
        pair: Whether a row has two texts.
        main_metric: Name of the metric that chose the best epoch.
        evaluation_split: The split whose rows are in the artifact; export verifies on them.
        base_checkpoint: Location of the checkpoint that training started from.
        data: The rows.
        training: The hyperparameters.
        adapter: The adapter, if one was trained.
        distillation: The teacher, if there was one.
        figures: What was measured.
        max_length: Maximum tokens of a row.
    """

    artifact_kind: ClassVar[str] = "checkpoint"
    remedy: ClassVar[str] = "tritonize finetune --name NAME"

    kind: Literal["checkpoint"] = "checkpoint"
    name: str
    task: str
    labels: tuple[str, ...]
    settings: dict[str, JsonValue]
    chosen_settings: dict[str, JsonValue]
    fitted_settings: dict[str, float]
    pair: bool
    main_metric: str
    evaluation_split: Literal["validation", "test"]
    base_checkpoint: str
    data: TrainingData
    training: dict[str, JsonValue]
    adapter: AdapterRecord | None
    distillation: DistillationRecord | None
    figures: TrainingFigures
    max_length: int
