"""What a task must say about itself. Everything else (configs, wiring, server, client, gates) is derived from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

Text = str | tuple[str, str]
"""One row for the tokenizer: a text, or a pair of texts."""

Arrays = dict[str, npt.NDArray[Any]]
"""Tensors by name; the first axis of each is the row."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the ensemble as Triton configures it.

    Args:
        name: as clients write it.
        dtype: Triton's name: ``TYPE_STRING``, ``TYPE_FP32``, ``TYPE_INT64`` …
        dims: shape of one row, without the batch dimension.
    """

    name: str
    dtype: str
    dims: tuple[int, ...] = (1,)


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A task bound to one checkpoint. Its dataclass fields are its settings: JSON-ready, recorded in the bundle, read in Triton."""

    pair: bool = False
    """Whether a row is two texts, so that the model must tell one from the other."""

    name: ClassVar[str]
    """As ``transformers.pipeline`` and Optimum call it."""
    auto_model: ClassVar[str]
    """Auto class of ``transformers`` that loads a checkpoint of this task (a name: nothing here imports torch)."""
    metric: ClassVar[str]
    """Local metric module under ``export/metrics``."""
    main_metric: ClassVar[str]
    """The figure of that metric that gates and best-epoch selection look at; higher is better, 0 to 1."""
    logits: ClassVar[str] = "logits"
    """The graph output that :meth:`answers` reads."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any], *, pair: bool) -> Self:
        """Bind the task to a checkpoint's ``config.json``; ``pair`` says whether it was fine-tuned on two texts."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`settings`."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        return cls(**values)

    def settings(self) -> dict[str, Any]:
        """The dataclass fields, JSON-ready."""
        return asdict(self)

    @abstractmethod
    def inputs(self) -> tuple[Tensor, ...]:
        """Tensors of a request."""

    @abstractmethod
    def outputs(self) -> tuple[Tensor, ...]:
        """Tensors of an answer."""

    @property
    @abstractmethod
    def example(self) -> dict[str, str]:
        """One request by tensor name: warm-up, readiness probe and the curl line that ``serve`` prints use it."""

    @abstractmethod
    def texts(self, columns: Sequence[Sequence[str]]) -> Sequence[Text]:
        """Rows for the tokenizer from the decoded input tensors, one sequence of strings per tensor of :meth:`inputs`."""

    @abstractmethod
    def answers(self, logits: npt.NDArray[np.float32]) -> Arrays:
        """Model output ``[rows, …]`` of many requests at once → the tensors of :meth:`outputs`, ``[rows, *dims]``."""

    @abstractmethod
    def request_rows(self, inputs: Any) -> list[tuple[str, ...]]:
        """What a user hands to ``transformers.pipeline`` → one tuple of strings per row, in the order of :meth:`inputs`.

        Raises:
            TypeError, ValueError: the input is not of a form the pipeline takes; the message says which are.
        """

    @abstractmethod
    def pipeline_answers(self, answers: Arrays, **options: Any) -> list[Any]:
        """Tensors of :meth:`outputs` → what ``transformers.pipeline`` gives for each row.

        Raises:
            TypeError: an option the pipeline does not have, or of another type.
        """

    def pipeline_result(self, inputs: Any, answers: list[Any], options: Mapping[str, Any]) -> Any:  # noqa: ARG002 - tasks differ
        """One answer per row → what ``transformers.pipeline`` returns for ``inputs`` as a whole: a list for a list."""
        return answers if isinstance(inputs, list | tuple) else answers[0]
