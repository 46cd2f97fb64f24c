"""Defines what checkpoints, data sets, training and evaluation need of a task.

Three classes, by what can be done with a task:

* :class:`Task`: it reads labelled rows and has a metric. Every task.
* :class:`TrainedTask`: checkpoints are fine-tuned for it.
* :class:`ExportedTask`: checkpoints are exported, verified and served. It names its served half
  (:class:`serving.runtime.tasks.base.ServedTask`), which is all of it that runs in Triton.

Text classification, for example, is both trained and exported; text generation is trained only; zero-shot classification is
exported only, because its checkpoints are trained for text classification.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Generic, Self, cast

import numpy as np
from typing_extensions import TypeVar

from serving.runtime.tasks.base import ServedTask
from serving.runtime.types import Arrays, Features, Flags, JsonValue, Option, Origins, Text, TextColumns

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx
    import torch
    from tokenizers import Tokenizer
    from transformers import Pipeline, PreTrainedTokenizerFast

    from serving.runtime.tokenization import TextEncoder

IGNORED = -100
"""Target of a position that has no label: the losses of ``transformers`` ignore it."""

Label = JsonValue
"""A row's label as the data set has it, checked by :meth:`Task.read_row`."""
Reference = JsonValue
"""What the metric compares a prediction with."""
Prediction = JsonValue
"""What the metric compares with a reference."""

Served_co = TypeVar("Served_co", bound=ServedTask, covariant=True, default=ServedTask)


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A task bound to one checkpoint or to one training set. Its dataclass fields are its settings, JSON-ready."""

    name: ClassVar[str]
    """Name of the task in ``transformers.pipeline`` and on the command line."""
    auto_model: ClassVar[str]
    """Auto class of ``transformers`` that loads a checkpoint of this task."""
    architectures: ClassVar[tuple[str, ...]] = ()
    """Endings of the names of its model classes, where they differ from that of :attr:`auto_model`."""
    trained_as: ClassVar[str] = ""
    """Task that its checkpoints are fine-tuned for, where that is another one."""
    has_pipeline: ClassVar[bool] = True
    """Whether ``transformers`` has a pipeline for the task that gives the same answers."""
    heads: ClassVar[tuple[str, ...]] = ("logits",)
    """Outputs of the model in ``transformers`` that are used, in the order in which it gives them."""
    grouped: ClassVar[bool] = False
    """Whether the model in ``transformers`` takes all model rows of a request row along an axis of their own.

    Its inputs are then ``[request rows, rows, tokens]``. Those of the served graph never are."""
    settings: ClassVar[Mapping[str, Option]] = {}
    """Settings that a user may choose for a checkpoint with ``--setting``, by name. Each is a dataclass field too."""
    checkpoint_files: ClassVar[tuple[str, ...]] = ()
    """JSON files of a checkpoint, besides ``config.json``, that :meth:`checkpoint_settings` reads: patterns of relative paths."""
    columns: ClassVar[Mapping[str, str | None]] = {"text": "text", "text_pair": None, "label": "label"}
    """Default columns of a data set. ``label`` None: rows need no label. ``choices`` may be several columns of one choice each."""
    reads_digits: ClassVar[bool] = True
    """Whether labels that are all digits, in a file that has only text, are numbers."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the label names in the order of the logits. Default: the task has none."""
        return ()

    @property
    def pair(self) -> bool:
        """Tell whether a row is two texts, which the model must tell apart."""
        return False

    @property
    def model_outputs(self) -> tuple[str, ...]:
        """Return the names of the arrays that evaluation reads, in the order in which a batch gives them."""
        return self.heads

    # -- settings -------------------------------------------------------------------------------------------------------------

    @classmethod
    def known_settings(cls) -> Mapping[str, Option]:
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
    def checkpoint_settings(
        cls,
        config: Mapping[str, object],  # noqa: ARG003 - most checkpoints say nothing of their settings
        files: Mapping[str, object],  # noqa: ARG003
        chosen: Mapping[str, JsonValue],
    ) -> dict[str, JsonValue]:
        """Return the settings that a checkpoint itself defines, overridden by those that a user chose.

        Args:
            config: The checkpoint's ``config.json``.
            files: Contents of its :attr:`checkpoint_files` by relative path.
            chosen: Settings, as :meth:`check_settings` gave them.

        Raises:
            ValueError: The checkpoint cannot be used for this task. The message says why.
        """
        return dict(chosen)

    @classmethod
    def checkpoint_length(cls, files: Mapping[str, object]) -> int | None:  # noqa: ARG003
        """Return the number of tokens of a row that a checkpoint says it is used with. None: it does not say."""
        return None

    @classmethod
    def from_settings(cls, settings: Mapping[str, JsonValue]) -> Self:
        """Rebuild a task from what :meth:`to_settings` gave.

        Raises:
            TypeError: A setting is unknown or missing.
        """
        return cls(**_as_fields(settings))

    def to_settings(self) -> dict[str, JsonValue]:
        """Return all settings, JSON-ready."""
        return asdict(self)

    def with_settings(self, settings: Mapping[str, JsonValue]) -> Self:
        """Return the task with other values for some of its settings.

        Raises:
            TypeError: A setting is unknown.
            ValueError: A value is not allowed.
        """
        return replace(self, **_as_fields(settings))

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> Self:  # noqa: ARG002 - most tasks need nothing of it
        """Return the task bound to the checkpoint's tokenizer, before it is used.

        Raises:
            ValueError: The checkpoint cannot be used for this task with it. The message says why.
        """
        return self

    # -- rows of a data set ---------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def read_row(cls, texts: tuple[object, ...], label: object) -> tuple[tuple[object, ...], Label]:
        """Read the cells of a data set's row.

        Args:
            texts: Cells of the text columns.
            label: Cell of the label column. None where there is no such column.

        Returns:
            The strings of a request (the caller checks that they are strings), and the label.

        Raises:
            ValueError: A cell has invalid content.
        """

    @classmethod
    def group_key(cls, texts: tuple[str, ...]) -> str | tuple[str, ...]:
        """Return what rows share that must all be held out together, or none of them. Default: all their texts."""
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
        """Convert a label to what :meth:`predictions <ExportedTask.predictions>` is compared with.

        Raises:
            ValueError: The checkpoint has no such label.
        """

    @abstractmethod
    def is_reference(self, value: object) -> bool:
        """Tell whether :meth:`reference` could have given ``value``, which was read from a file."""

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
    def main_metric(self) -> str:
        """Return the figure of the metric that gates and the choice of the best epoch look at. Higher is better, 1 is best."""

    def extra_figures(
        self,
        outputs: Arrays,  # noqa: ARG002 - most metrics say enough
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


@dataclass(frozen=True, kw_only=True)
class TrainedTask(Task):
    """A task that checkpoints are fine-tuned for."""

    generates: ClassVar[bool] = False
    """Whether the model is an encoder-decoder that reads a row and then generates its answer token by token."""
    causal: ClassVar[bool] = False
    """Whether the model is a causal language model, trained to predict the next token."""
    token_level: ClassVar[bool] = False
    """Whether the second axis of the model's :attr:`heads` is the token position."""
    fits_length: ClassVar[bool] = False
    """Whether truncated text is lost to the model: the default length is then chosen so that most rows fit."""
    default_max_length: ClassVar[int] = 128
    """Default number of tokens of a row in fine-tuning."""

    @classmethod
    @abstractmethod
    def from_labels(cls, labels: Sequence[Label], *, names: Sequence[str], pair: bool) -> Self:
        """Bind the task to the labels of a training set.

        Args:
            labels: Labels of all rows, as :meth:`read_row` gave them.
            names: Label names in order where the data set itself defines them, otherwise empty.
            pair: Whether rows are two texts.

        Raises:
            ValueError: Nothing can be learned from them.
        """

    def head(self) -> dict[str, object]:
        """Return the arguments of ``from_pretrained`` that define the head: ``num_labels``, ``id2label`` … Default: none."""
        return {}

    def generation_settings(self) -> dict[str, object]:
        """Return settings of ``generate``, for a model that :attr:`generates`."""
        return {}

    def files_written(self, max_length: int) -> dict[str, JsonValue]:  # noqa: ARG002
        """Return the :attr:`checkpoint_files` of a fine-tuned checkpoint, by relative path, which record how it is used."""
        return {}

    def training_features(self, texts: TextColumns, encoder: TextEncoder) -> Features:
        """Convert the texts of :meth:`prepare_rows` to model rows for training. Default: as for evaluation."""
        return self.features(texts, encoder)

    def encode_targets(self, references: Sequence[Reference], encoder: TextEncoder) -> Sequence[Reference]:  # noqa: ARG002
        """Convert references to the form that :meth:`targets` takes. Default: as they are."""
        return references

    @abstractmethod
    def targets(self, features: Features, references: Sequence[Reference]) -> dict[str, list[JsonValue]]:
        """Build the training targets.

        Args:
            features: The training rows, in order.
            references: Of the same rows, as :meth:`encode_targets` gives them.

        Returns:
            By the argument name of the model's ``forward``, one per model row: a value, or a list as long as the row's tokens.
        """

    def preprocess_logits_for_metrics(
        self,
        outputs: torch.Tensor | tuple[torch.Tensor, ...],
        targets: torch.Tensor,  # noqa: ARG002 - most outputs are small
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Reduce the outputs of a batch to what evaluation needs (as the argument of ``transformers.Trainer``). Default: all.

        Args:
            outputs: The model's heads, one tensor or several, ``[model rows, …]``.
            targets: ``labels`` of the same rows.
        """
        return outputs

    def fitted_settings(self) -> Mapping[str, Sequence[JsonValue]]:
        """Return the settings to choose after training, on the validation rows, with the values to try, the default first."""
        return {}

    @abstractmethod
    def evaluate(self, outputs: Arrays, origins: Origins, tokenizer: Tokenizer) -> list[Prediction]:
        """Convert the model's outputs, collected while it is trained, to one prediction per labelled row.

        Args:
            outputs: :attr:`model_outputs`, ``[model rows, …]``, as :meth:`preprocess_logits_for_metrics` left them.
            origins: Where the model rows come from.
            tokenizer: The checkpoint's tokenizer.
        """


@dataclass(frozen=True, kw_only=True)
class AugmentedTask(TrainedTask):
    """A trained task whose batches are changed at random each time they are used."""

    @abstractmethod
    def augment_batch(self, batch: Arrays, generator: np.random.Generator) -> Arrays:
        """Return the inputs and targets ``[model rows, longest]`` that a batch is trained with this time."""


@dataclass(frozen=True, kw_only=True)
class OwnLossTask(TrainedTask):
    """A trained task whose model in ``transformers`` has no loss."""

    @abstractmethod
    def loss(self, outputs: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the loss of a batch.

        Args:
            outputs: :attr:`model_outputs` of the batch's rows, in the order of :meth:`requests`.
            targets: As :meth:`targets` gives them, ``[labelled rows]``.
        """

    @abstractmethod
    def head_outputs(self, heads: Mapping[str, torch.Tensor], feed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute :attr:`model_outputs` of a batch from the model's heads and its inputs, differentiably."""


@dataclass(frozen=True, kw_only=True)
class ExportedTask(Task, Generic[Served_co]):
    """A task whose checkpoints are exported and served.

    Attributes:
        served: Its served half, with the settings that Triton needs. The other fields are settings of evaluation alone.
    """

    served: Served_co

    served_class: ClassVar[type[ServedTask]]
    """Class of the served half."""
    optimum_task: ClassVar[str] = ""
    """Name of the task in Optimum, where it is not :attr:`name`."""
    evaluation_options: ClassVar[Mapping[str, JsonValue]] = {}
    """Request parameters that training and verification use, where the default answer says too little for the metric."""
    pipeline_options: ClassVar[Mapping[str, object]] = {}
    """Options of the pipeline that make its answers comparable in a benchmark."""
    has_output_head: ClassVar[bool] = False
    """Whether :meth:`add_output_head` appends nodes to the exported graph."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, object], *, pair: bool) -> Self:
        """Bind the task to a checkpoint's ``config.json``.

        Args:
            config: The config.
            pair: Whether the checkpoint was fine-tuned on two texts.

        Raises:
            ValueError: The checkpoint cannot be served for this task. The message says why.
        """

    @property
    def pair(self) -> bool:
        """Tell whether a row is two texts, which the model must tell apart."""
        return self.served.pair

    @property
    def model_outputs(self) -> tuple[str, ...]:
        """Return the outputs of the served graph."""
        return self.served.model_outputs

    # -- settings -------------------------------------------------------------------------------------------------------------

    @classmethod
    def known_settings(cls) -> Mapping[str, Option]:
        """Return the defaults of request parameters, and the task's own settings."""
        return {**cls.served_class.options, **cls.settings}

    @classmethod
    def setting_defaults(cls) -> dict[str, JsonValue]:
        """Return the default of each setting of either half that has one."""
        served = {one.name: one.default for one in fields(cls.served_class) if one.default is not MISSING}
        return served | super().setting_defaults()

    @classmethod
    def from_settings(cls, settings: Mapping[str, JsonValue]) -> Self:
        """Rebuild a task from what :meth:`to_settings` gave.

        Raises:
            TypeError: A setting of evaluation is unknown or missing.
            ValueError: A setting of the served half is unknown or missing.
        """
        own = {name: value for name, value in settings.items() if name in _own_fields(cls)}
        served = {name: value for name, value in settings.items() if name not in own}
        return cls(served=cast("Served_co", cls.served_class.from_settings(served)), **_as_fields(own))

    def to_settings(self) -> dict[str, JsonValue]:
        """Return the settings of both halves, JSON-ready."""
        return self.served.to_settings() | self.evaluation_settings

    @property
    def evaluation_settings(self) -> dict[str, JsonValue]:
        """Return the settings that only evaluation needs, JSON-ready."""
        return {name: getattr(self, name) for name in _own_fields(type(self))}

    def with_settings(self, settings: Mapping[str, JsonValue]) -> Self:
        """Return the task with other values for some settings of either half.

        Raises:
            TypeError: A setting is unknown.
            ValueError: A value is not allowed.
        """
        own = {name: value for name, value in settings.items() if name in _own_fields(type(self))}
        served = {name: value for name, value in settings.items() if name not in own}
        changed = replace(self.served, **_as_fields(served))  # type: ignore[arg-type]
        changed.check_options()
        return replace(self, served=changed, **_as_fields(own))

    # -- rows of a data set ---------------------------------------------------------------------------------------------------

    @property
    def text_columns(self) -> int:
        """Return the number of the served half's inputs."""
        return len(self.served.inputs())

    def texts(self, columns: TextColumns) -> Sequence[Text]:
        """Convert the texts of a data set's rows to rows for the tokenizer, as the served half does."""
        return self.served.texts(columns)

    def features(self, columns: TextColumns, encoder: TextEncoder) -> Features:
        """Convert the texts of a data set's rows to model rows, as the served half does."""
        return self.evaluated.preprocess(self.requests(columns), encoder)

    def with_evaluation_labels(self, labels: Sequence[Label], *, names: Sequence[str]) -> Self:  # noqa: ARG002
        """Return the task ready to be evaluated on rows with those labels. Default: the task knows its labels already.

        Args:
            labels: As for :meth:`TrainedTask.from_labels`.
            names: As for :meth:`TrainedTask.from_labels`.

        Raises:
            ValueError: It cannot be evaluated on them.
        """
        return self

    # -- the exported graph ---------------------------------------------------------------------------------------------------

    def add_output_head(self, model: onnx.ModelProto) -> str | None:  # noqa: ARG002 - most graphs are complete
        """Append to a raw fp32 graph, in place, what turns :attr:`heads` into :attr:`model_outputs`. Default: nothing.

        Returns:
            A sentence for the manifest, if there is something to say.

        Raises:
            ExportError: The graph lacks an input that the head needs.
        """
        return None

    def apply_output_head(self, heads: Arrays, feed: Arrays) -> Arrays:  # noqa: ARG002
        """Compute in numpy what :meth:`add_output_head` appends, for the PyTorch original.

        Args:
            heads: Outputs of the model in ``transformers``, ``[model rows, …]``.
            feed: Its inputs, ``[model rows, longest]``.
        """
        return heads

    # -- evaluation -----------------------------------------------------------------------------------------------------------

    @cached_property
    def evaluated(self) -> Served_co:
        """Return the served half with the :attr:`evaluation_options` in place of its defaults."""
        return self.served.with_options(self.evaluation_options)

    def answers(self, outputs: Arrays, origins: Origins) -> Arrays:
        """Compute the served answers, and under other names what :meth:`agreement` and :meth:`ties` need besides.

        Args:
            outputs: :attr:`model_outputs`, ``[model rows, …]``.
            origins: Where the model rows come from.
        """
        return self.evaluated.postprocess(outputs, origins)

    def evaluate(self, outputs: Arrays, origins: Origins, tokenizer: Tokenizer) -> list[Prediction]:  # noqa: ARG002
        """Convert the model's outputs, collected while it is trained, to one prediction per labelled row."""
        return self.predictions(self.answers(outputs, origins))

    @abstractmethod
    def predictions(self, answers: Arrays) -> list[Prediction]:
        """Convert answers to what the metric takes: one per labelled row, in the form of :meth:`reference`."""

    def confidence(self, answers: Arrays) -> npt.NDArray[np.float64] | None:  # noqa: ARG002 - most scores are no probabilities
        """Return the probability of each prediction, ``[labelled rows]``, where predictions are one of several choices."""
        return None

    @abstractmethod
    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """Compare a variant's answers with the original's: ``[labelled rows]``, 1 where they are the same, 0 where they differ."""

    @abstractmethod
    def ties(self, original: Arrays) -> Flags:
        """Find the answers of the original that are so close a call that either side is right: ``[labelled rows]``."""

    def ask_pipeline(self, pipeline: Pipeline, rows: Sequence[Sequence[str]], *, max_length: int) -> list[object]:
        """Ask a ``transformers.pipeline`` about rows of requests, all in one batch.

        Args:
            pipeline: The pipeline.
            rows: Strings of each row.
            max_length: Tokens kept of a row.

        Returns:
            One answer per row.
        """
        inputs = [{"text": row[0], "text_pair": row[1]} if self.pair else row[0] for row in rows]
        found: list[object] = pipeline(
            inputs, batch_size=len(inputs), truncation=True, max_length=max_length, **self.pipeline_options
        )
        return found


def _own_fields(task: type[ExportedTask[Served_co]]) -> list[str]:
    """Return the names of the fields that are settings of evaluation."""
    return [one.name for one in fields(task) if one.name != "served"]


def _as_fields(settings: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Turn JSON lists into the tuples that dataclass fields hold."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def label_names(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return a checkpoint's labels in the order of its logits.

    Args:
        config: Its ``config.json``.
    """
    id2label = cast("Mapping[str, str]", config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"})  # default of transformers
    return tuple(label for _, label in sorted((int(index), str(label)) for index, label in id2label.items()))


def label_head(labels: Sequence[str]) -> dict[str, object]:
    """Return the arguments of ``from_pretrained`` for a head with one logit per label."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
