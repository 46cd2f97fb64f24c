"""Defines what every task has: labelled rows, settings, and a metric.

By what can be done with a task:

* :class:`Task`: it reads labelled rows and has a metric. Every task.
* :class:`~export.tasks.trained.TrainedTask`: checkpoints are fine-tuned for it.
* :class:`~export.tasks.exported.ExportedTask`: checkpoints are exported, verified and served. It names its served half
  (:class:`serving.runtime.tasks.base.ServedTask`), which is all of it that runs in Triton.
* ``ExportedEncoderTask`` (``export.tasks._encoder``): the model answers in one execution.

Text classification, for example, is both trained and exported; text generation is trained only; zero-shot classification is
exported only, because its checkpoints are trained for text classification.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Self, cast

import numpy as np

from serving.runtime.types import Arrays, Features, JsonValue, Origins, Setting, Text, TextColumns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from serving.runtime.tokenization import TextEncoder

IGNORED = -100
"""Target of a position that has no label: the losses of ``transformers`` ignore it."""

METRIC_SYNONYMS = {"mse": "negative_mse"}
"""Names under which users also know a metric."""

Label = JsonValue
"""A row's label as the data set has it, checked by :meth:`Task.read_row`."""
Reference = JsonValue
"""What the metric compares a prediction with."""
Prediction = JsonValue
"""What the metric compares with a reference."""


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A task bound to one checkpoint or to one training set. Its dataclass fields are its settings, JSON-ready.

    Attributes:
        chosen_metric: The figure that the user chose as the :attr:`main_metric`; empty: the task's own.
    """

    chosen_metric: str = ""

    name: ClassVar[str]
    """Name of the task in ``transformers.pipeline`` and on the command line."""
    auto_model: ClassVar[str]
    """Auto class of ``transformers`` that loads a checkpoint of this task."""
    architectures: ClassVar[tuple[str, ...]] = ()
    """Suffixes of the names of its model classes, if they differ from that of :attr:`auto_model`."""
    trained_as: ClassVar[str] = ""
    """Task that its checkpoints are fine-tuned for, if that is another one."""
    has_pipeline: ClassVar[bool] = True
    """Whether ``transformers`` has a pipeline for the task that gives the same answers."""
    truncating_options: ClassVar[Mapping[str, object]] = {"truncation": True}
    """Options with which that pipeline truncates a text that is too long; empty if it needs none."""
    heads: ClassVar[tuple[str, ...]] = ("logits",)
    """Outputs of the model in ``transformers`` that are used, in the order in which it gives them."""
    grouped: ClassVar[bool] = False
    """Whether the model in ``transformers`` takes all model rows of a request row along a separate axis.

    Its inputs are then ``[request rows, rows, tokens]``. The served graph has no such axis."""
    metric_note: ClassVar[str] = ""
    """What the figures of the metric count or average, where their names do not say it."""
    settings: ClassVar[Mapping[str, Setting]] = {}
    """Settings that a user may choose for a checkpoint with ``--setting``, by name. Each is a dataclass field too."""
    checkpoint_files: ClassVar[tuple[str, ...]] = ()
    """JSON files of a checkpoint, besides ``config.json``, that :meth:`checkpoint_settings` reads: patterns of relative paths."""
    recognized_by: ClassVar[str] = ""
    """One of these files by which a checkpoint is known to be of this task, whatever its architecture; empty: there is none."""
    columns: ClassVar[Mapping[str, str | None]] = {"text": "text", "text_pair": None, "label": "label"}
    """Default columns of a data set. ``label`` None: rows need no label. ``choices`` may be several columns of one choice each."""
    takes_pairs: ClassVar[bool] = False
    """Whether a row may have a second text, although there is no default column for it."""
    reads_words: ClassVar[bool] = False
    """Whether a row may be a list of words, each with its label, as in CoNLL files."""
    reads_digits: ClassVar[bool] = True
    """Whether labels that are all digits, in a file that has only text, are numbers."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the label names in the order of the logits. Default: the task has none."""
        return ()

    @property
    def pair(self) -> bool:
        """Return whether a row is a pair of texts."""
        return False

    @property
    def model_outputs(self) -> tuple[str, ...]:
        """Return the names of the arrays that evaluation reads, in the order in which a batch gives them."""
        return self.heads

    # -- settings -------------------------------------------------------------------------------------------------------------

    @classmethod
    def known_settings(cls) -> Mapping[str, Setting]:
        """Return every setting that a user may choose for a checkpoint."""
        return cls.settings

    @classmethod
    def setting_defaults(cls) -> dict[str, JsonValue]:
        """Return the default of each setting that has one."""
        return {one.name: one.default for one in fields(cls) if one.default is not MISSING}

    @classmethod
    def check_settings(cls, given: Mapping[str, object]) -> dict[str, JsonValue]:
        """Check the settings that a user chose.

        Args:
            given: Values by name, or strings to be parsed.

        Raises:
            ValueError: A setting does not exist, has another kind, or is not allowed.
        """
        known = cls.known_settings()
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"{cls.name} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known)) or 'none'}")
        parsed = {name: known[name].parse(value) if isinstance(value, str) else value for name, value in given.items()}
        return {name: known[name].check(name, value) for name, value in parsed.items()}

    @classmethod
    def serving_settings(cls, given: Collection[str]) -> list[str]:  # noqa: ARG003
        """Return those of some settings that training does not use. Default: none."""
        return []

    @classmethod
    def checkpoint_settings(
        cls,
        config: Mapping[str, object],  # noqa: ARG003 - most checkpoints record no settings
        files: Mapping[str, object],  # noqa: ARG003
        chosen: Mapping[str, JsonValue],
    ) -> dict[str, JsonValue]:
        """Return the settings that a checkpoint itself defines, overridden by those that a user chose.

        Args:
            config: The checkpoint's ``config.json``.
            files: Contents of its :attr:`checkpoint_files` by relative path.
            chosen: Settings, as :meth:`check_settings` gave them.

        Raises:
            ValueError: The checkpoint cannot be used for this task. The message has the reason.
        """
        return dict(chosen)

    @classmethod
    def checkpoint_length(cls, files: Mapping[str, object]) -> int | None:  # noqa: ARG003
        """Return the maximum row length in tokens that a checkpoint recommends; None if it recommends none."""
        return None

    @classmethod
    def from_settings(cls, settings: Mapping[str, JsonValue]) -> Self:
        """Rebuild a task from what :meth:`to_settings` gave.

        Raises:
            TypeError: A setting is unknown or missing.
        """
        return cls(**as_fields(settings))  # type: ignore[arg-type]

    def to_settings(self) -> dict[str, JsonValue]:
        """Return all settings, JSON-ready."""
        return asdict(self)

    def with_settings(self, settings: Mapping[str, JsonValue]) -> Self:
        """Return the task with other values for some of its settings.

        Raises:
            TypeError: A setting is unknown.
            ValueError: A value is not allowed.
        """
        return replace(self, **as_fields(settings))  # type: ignore[arg-type]

    def idle_settings(self) -> Mapping[str, str]:
        """Return the settings that have no effect for this checkpoint, each with the reason. Default: all have one."""
        return {}

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> Self:  # noqa: ARG002 - most tasks do not need it
        """Return the task bound to the checkpoint's tokenizer, before it is used.

        Raises:
            ValueError: The checkpoint's tokenizer cannot be used for this task. The message has the reason.
        """
        return self

    # -- rows of a data set ---------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def read_row(cls, texts: tuple[object, ...], label: object) -> tuple[tuple[object, ...], Label]:
        """Read the cells of a data set's row.

        Args:
            texts: Cells of the text columns.
            label: Cell of the label column. None if there is no such column.

        Returns:
            The strings of a request (the caller checks that they are strings), and the label.

        Raises:
            ValueError: A cell has invalid content.
        """

    @classmethod
    def group_key(cls, texts: tuple[str, ...]) -> str | tuple[str, ...]:
        """Return the key of the group that a row belongs to. A split holds out whole groups. Default: all texts of the row."""
        return texts

    @property
    def text_columns(self) -> int:
        """Return the number of columns of a data set that :meth:`read_row` turns into texts."""
        return 1

    def requests(self, columns: TextColumns) -> TextColumns:
        """Convert the texts of a data set's rows to rows of requests.

        There are as many, or a multiple: first the first requests of all rows, then the second ones, and so on.
        """
        return columns

    def texts(self, columns: TextColumns) -> Sequence[Text]:
        """Convert the texts of a data set's rows to rows for the tokenizer. Default: the first text."""
        return columns[0]

    def features(self, columns: TextColumns, encoder: TextEncoder) -> Features:
        """Convert the texts of a data set's rows to model rows, as evaluation needs them.

        Raises:
            ValueError: The served model would refuse a row.
        """
        encodings = encoder.encode(self.texts(columns))
        return Features(encodings, Origins(np.arange(len(encodings))))

    @abstractmethod
    def reference(self, label: Label) -> Reference:
        """Convert a label to what :meth:`predictions <export.tasks._encoder.ExportedEncoderTask.predictions>` is compared with.

        Raises:
            ValueError: The checkpoint has no such label.
        """

    @abstractmethod
    def is_reference(self, value: object) -> bool:
        """Return whether ``value``, which was read from a file, is a valid result of :meth:`reference`."""

    def prepare_rows(
        self,
        texts: TextColumns,
        references: Sequence[Reference],
        encoder: TextEncoder,  # noqa: ARG002 - most rows are complete
        *,
        training: bool,  # noqa: ARG002
    ) -> tuple[TextColumns, Sequence[Reference]]:
        """Convert rows of a data set to those to train or to evaluate on. Default: the same rows.

        Tasks that make their labels from plain text do it here.

        Args:
            texts: Texts by column.
            references: As :meth:`reference` gave them.
            encoder: The tokenizer.
            training: Whether the rows are for training, not for evaluation.

        Returns:
            As many texts as references. Rows that cannot be used are left out.

        Raises:
            ValueError: A row is invalid. The message shows it.
        """
        return texts, references

    # -- evaluation -----------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def metric(self) -> str:
        """Return the local metric module under ``export/metrics``."""

    @property
    @abstractmethod
    def default_metric(self) -> str:
        """Return the figure of the metric that decides gates and the best epoch, unless the user chooses another."""

    @property
    def selectable_metrics(self) -> tuple[str, ...]:
        """Return the figures of the metric that the user may choose to decide. In each of them, higher is better."""
        return (self.default_metric,)

    @property
    def main_metric(self) -> str:
        """Return the figure of the metric that decides gates and the best epoch."""
        return self.chosen_metric or self.default_metric

    def with_metric(self, name: str) -> Self:
        """Return the task with another :attr:`main_metric`, one of the :attr:`selectable_metrics`.

        Raises:
            ValueError: It is none of them.
        """
        found = METRIC_SYNONYMS.get(name, name)
        if found not in self.selectable_metrics:
            raise ValueError(f"the rows of {self.name} have no metric {name}; they have {', '.join(self.selectable_metrics)}")
        return replace(self, chosen_metric="" if found == self.default_metric else found)

    def extra_figures(
        self,
        outputs: Arrays,  # noqa: ARG002 - most metrics are sufficient
        original: Arrays,  # noqa: ARG002
        origins: Origins,  # noqa: ARG002
        references: Sequence[Reference],  # noqa: ARG002
    ) -> dict[str, float]:
        """Compute figures, by name, that need more than the predictions.

        Args:
            outputs: The model's outputs, ``[model rows, …]``.
            original: Those of the PyTorch original for the same rows.
            origins: Where the model rows come from.
            references: One per labelled row.
        """
        return {}


def as_fields(settings: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Turn JSON lists into the tuples that dataclass fields hold."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def label_names(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return :func:`config_labels` as strings."""
    return tuple(map(str, config_labels(config)))


def config_labels(config: Mapping[str, object]) -> tuple[str | int, ...]:
    """Return a checkpoint's labels in the order of its logits, as the config class of ``transformers`` has them.

    A label is a string. A whole number stays one, as in the answers of the pipeline.

    Args:
        config: Its ``config.json``.

    Raises:
        ValueError: ``id2label`` does not name each logit.
    """
    id2label = config.get("id2label")
    if id2label is None:
        return tuple(f"LABEL_{index}" for index in range(_label_count(config)))
    if not isinstance(id2label, Mapping) or not id2label:
        raise ValueError(f"its id2label is {id2label!r:.80}, not an object of labels")
    keys = [str(key) for key in id2label]
    if sorted(keys) != sorted(map(str, range(len(keys)))):
        raise ValueError(f"its id2label has the keys {', '.join(keys)}, but logits are numbered from 0 to {len(keys) - 1}")
    ordered = [label for _, label in sorted(id2label.items(), key=lambda item: int(item[0]))]
    return tuple(label if type(label) is int else str(label) for label in ordered)


def _label_count(config: Mapping[str, object]) -> int:
    """Return the number of labels of a config that does not name them."""
    count = config.get("num_labels")
    if count is None:  # most config classes have two labels by default
        from transformers import CONFIG_MAPPING

        kind = str(config.get("model_type"))
        return cast(int, CONFIG_MAPPING[kind]().num_labels) if kind in CONFIG_MAPPING else 2
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"its num_labels is {count!r:.80}, not a number of labels")
    return count


def label_head(labels: Sequence[str]) -> dict[str, object]:
    """Return the arguments of ``from_pretrained`` for a head with one logit per label."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
