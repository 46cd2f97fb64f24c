"""Defines what export, verification and benchmarks need of a task."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Generic, Self, cast

import numpy as np
from typing_extensions import TypeVar

from export.tasks.base import Label, Prediction, Task, as_fields
from serving.runtime.tasks.base import ServedTask
from serving.runtime.types import Arrays, Features, Flags, JsonValue, Origins, Setting, Text, TextColumns

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx
    from tokenizers import Tokenizer
    from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerFast

    from serving.runtime.tokenization import TextEncoder

Served_co = TypeVar("Served_co", bound=ServedTask, covariant=True, default=ServedTask)


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
    """Name of the task in Optimum, if it differs from :attr:`name`."""
    pipeline_options: ClassVar[Mapping[str, object]] = {}
    """Options of the pipeline that make its answers comparable in a benchmark."""
    library_name: ClassVar[str] = "transformers.pipeline"
    """What :meth:`library` asks."""
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

    @classmethod
    def suits(cls, config: Mapping[str, object]) -> bool:  # noqa: ARG003
        """Return whether a checkpoint with a head of this task is meant for it. Default: any is."""
        return True

    @property
    def pair(self) -> bool:
        """Return whether a row is a pair of texts."""
        return self.served.pair

    @property
    def evaluation_options(self) -> Mapping[str, JsonValue]:
        """Return the request parameters for training and verification, if the metric needs more than the default answer."""
        return {}

    @property
    def model_outputs(self) -> tuple[str, ...]:
        """Return the outputs of the served graph."""
        return self.served.model_outputs

    # -- settings -------------------------------------------------------------------------------------------------------------

    @classmethod
    def known_settings(cls) -> Mapping[str, Setting]:
        """Return the defaults of request parameters, and the task's own settings."""
        served = cls.served_class
        return {name: one for name, one in served.options.items() if name not in served.request_only} | dict(cls.settings)

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
        return cls(served=cast("Served_co", cls.served_class.from_settings(served)), **as_fields(own))  # type: ignore[arg-type]

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
        changed = replace(self.served, **as_fields(served))  # type: ignore[arg-type]
        changed.check_options()
        return replace(self, served=changed, **as_fields(own))  # type: ignore[arg-type]

    @property
    def plain_texts(self) -> int:
        """Return the number of a request row's texts, counted from the first one, that are plain text and no JSON."""
        return len(self.served.inputs())

    @property
    def truncated_texts(self) -> Sequence[int]:
        """Return the positions of those of the :attr:`plain_texts` that are truncated in a row that is too long."""
        return range(self.plain_texts)

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
            labels: As for :meth:`TrainedTask.from_labels <export.tasks.trained.TrainedTask.from_labels>`.
            names: As for :meth:`TrainedTask.from_labels <export.tasks.trained.TrainedTask.from_labels>`.

        Raises:
            ValueError: It cannot be evaluated on them.
        """
        return self

    # -- the exported graph ---------------------------------------------------------------------------------------------------

    def add_output_head(self, model: onnx.ModelProto) -> str | None:  # noqa: ARG002 - most graphs are complete
        """Append to a raw fp32 graph, in place, the nodes that compute :attr:`model_outputs` from :attr:`heads`. Default: none.

        Returns:
            A description of the change for the manifest; None if nothing is appended.

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
        """Compute the served answers, and the additional arrays that :meth:`agreement` and :meth:`ties` need.

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

    def confidence(self, answers: Arrays) -> npt.NDArray[np.float64] | None:  # noqa: ARG002 - most scores are not probabilities
        """Return the probability of each prediction, ``[labelled rows]``, if each prediction is one of several choices."""
        return None

    @abstractmethod
    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """Compare a variant's answers with the original's: ``[labelled rows]``, 1 if they are the same, 0 if they differ."""

    @abstractmethod
    def ties(self, original: Arrays) -> Flags:
        """Find the answers of the original that are nearly tied, so that either answer counts as equal: ``[labelled rows]``."""

    def near_ties(self, answers: Arrays, original: Arrays) -> int:  # noqa: ARG002 - most tasks have one decision a row
        """Count the labels within rows that :meth:`agreement` counts as equal because they are tied; see also :meth:`ties`."""
        return 0

    def row_agreement(self, answers: Arrays, original: Arrays) -> Flags | None:  # noqa: ARG002
        """Find the rows whose whole answer is the original's: ``[labelled rows]``.

        None, the default: :meth:`agreement` compares whole answers already, or there is no decision.
        """
        return None

    @property
    def labels_per_row(self) -> int:
        """Return the number of labels in a typical answer, all of which :meth:`row_agreement` compares."""
        return 3

    def score_changes(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64] | None:  # noqa: ARG002
        """Return how far the scores of the original's labels are from the original's, 0 to 1, in any order.

        Only labels whose score is part of both answers. None, the default: scores are no probabilities.
        """
        return None

    def asked_options(self, max_length: int) -> Mapping[str, object]:  # noqa: ARG002
        """Return the options of a call to the client that make its answers those of :meth:`library`.

        Args:
            max_length: Maximum tokens of a row.
        """
        return self.pipeline_options

    def edge_text(self, text: str, usual: str) -> str:  # noqa: ARG002 - most tasks take any text
        """Change an unusual text so that the task accepts it.

        Args:
            text: The unusual text.
            usual: The text of a row in the same place.
        """
        return text

    def library(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, max_length: int, options: Mapping[str, JsonValue]
    ) -> Callable[[Sequence[str]], object]:
        """Return a function that answers one row of raw texts as the library does that checkpoints of this task are made for.

        It shares no code with the served half.

        Args:
            model: The checkpoint's model.
            tokenizer: Its tokenizer, which truncates at ``max_length``.
            max_length: Maximum tokens of a row.
            options: Options that were chosen for the checkpoint.

        Raises:
            NotImplementedError: There is no pipeline, and the task does not define this method.
        """
        if not self.has_pipeline:
            raise NotImplementedError(f"{type(self).__name__} must define library: transformers has no pipeline for {self.name}")
        import transformers

        pipeline = transformers.pipeline(self.name, model=model, tokenizer=tokenizer, device=model.device, **options)
        return lambda row: self.ask_pipeline(pipeline, [row], max_length=max_length)[0]

    def ask_pipeline(self, pipeline: Pipeline, rows: Sequence[Sequence[str]], *, max_length: int) -> list[object]:
        """Ask a ``transformers.pipeline`` about rows of requests, all in one batch.

        Args:
            pipeline: The pipeline.
            rows: Strings of each row.
            max_length: Maximum tokens of a row.

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
