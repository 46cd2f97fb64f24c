"""Defines what every task has whose checkpoints are exported and served."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Generic, Self, cast

from typing_extensions import TypeVar

from export.tasks.base import Label, Task, as_fields
from serving.options import PRECISIONS, Precision
from serving.runtime.tasks.base import ServedTask
from serving.runtime.types import JsonValue, Setting

if TYPE_CHECKING:
    from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerFast

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
    pipeline_options: ClassVar[Mapping[str, object]] = {}
    """Options of the pipeline that make its answers comparable in a benchmark."""
    precisions: ClassVar[tuple[Precision, ...]] = PRECISIONS
    """Variants that can be exported."""
    default_precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "int8")
    """Those that are exported if none is named."""
    library_name: ClassVar[str] = "transformers.pipeline"
    """What :meth:`library` asks."""

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
        changed = replace(self.served, **as_fields(served))
        changed.check_options()
        return replace(self, served=changed, **as_fields(own))  # type: ignore[arg-type]

    def with_evaluation_labels(self, labels: Sequence[Label], *, names: Sequence[str]) -> Self:  # noqa: ARG002
        """Return the task ready to be evaluated on rows with those labels. Default: the task knows its labels already.

        Args:
            labels: As for :meth:`TrainedTask.from_labels <export.tasks.trained.TrainedTask.from_labels>`.
            names: As for :meth:`TrainedTask.from_labels <export.tasks.trained.TrainedTask.from_labels>`.

        Raises:
            ValueError: It cannot be evaluated on them.
        """
        return self

    def with_kept_rows(self, settings: Mapping[str, JsonValue]) -> Self:  # noqa: ARG002
        """Return the task ready to be evaluated on the rows that ``finetune`` kept. Default: it is.

        Args:
            settings: The settings that it was fine-tuned with.
        """
        return self

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
