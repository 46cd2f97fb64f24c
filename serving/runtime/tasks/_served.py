"""What a task says about being served: its tensors and options, rows for the model, answers, and what its client takes and gives.

Triton runs this, so it imports the standard library and numpy alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

    from tokenizers import Encoding, Tokenizer

    from ..tokenization import TextEncoder

Text = str | tuple[str, str]
"""One row for the tokenizer: a text, or a pair of texts."""

Columns = Sequence[Sequence[str]]
"""Rows by column: one sequence of strings per tensor of :meth:`Task.inputs`."""

Arrays = dict[str, npt.NDArray[Any]]
"""Tensors by name; the first axis of each is the row."""

Options = Mapping[str, Any]
"""What a request asks for besides its tensors, every option of the task with its value."""


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


@dataclass(frozen=True)
class Option:
    """Something a request may ask for, as a Triton request parameter. The task's field of the same name is its default.

    Args:
        kind: ``bool``, ``int``, ``float`` or ``str``.
        choices: the strings allowed; empty: any.
        minimum: the least number allowed.
    """

    kind: type
    choices: tuple[str, ...] = ()
    minimum: float | None = None

    def check(self, name: str, value: Any) -> Any:
        """``value`` as the option's kind.

        Raises:
            ValueError: it is of another kind, or not allowed; the message says what is.
        """
        whole = isinstance(value, int) and not isinstance(value, bool)
        if self.kind is float and whole:
            value = float(value)
        elif type(value) is not self.kind:
            raise ValueError(f"option {name} must be {_KINDS[self.kind]}, not {value!r:.80}")
        if self.choices and value not in self.choices:
            raise ValueError(f"option {name} must be one of {', '.join(self.choices)}, not {value!r:.80}")
        if self.minimum is not None and not value >= self.minimum:  # no number (NaN) is not either
            raise ValueError(f"option {name} must be {self.minimum:g} or more, not {value!r:.80}")
        return value

    def read(self, text: str) -> Any:
        """What a command line says, as the option's kind where it can be read as one."""
        if self.kind is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        try:
            return self.kind(text)
        except ValueError:
            return text


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


@dataclass(frozen=True)
class Origins:
    """Where each row that the model sees comes from: one request row may need several (windows of a long text, candidate labels).

    Args:
        owners: ``[model rows]``, position of the request row that each was made of; ascending, and none is left out.
        notes: one per model row: what its answer needs besides what the model says of it. Empty where the task
            :attr:`carries <Task.carries_notes>` none.
    """

    owners: npt.NDArray[np.int64]
    notes: Sequence[bytes] = ()

    @property
    def count(self) -> int:
        """How many request rows there are."""
        return int(self.owners[-1]) + 1 if len(self.owners) else 0


@dataclass(frozen=True)
class Features:
    """Rows for the model: their tokens, and where they come from."""

    encodings: Sequence[Encoding]
    origins: Origins


class TooManyRowsError(ValueError):
    """One row of a request would become more rows for the model than it takes."""


@dataclass(frozen=True, kw_only=True)
class ServedTask(ABC):
    """That half of a :class:`~.base.Task` which Triton and its clients use."""

    pair: bool = False
    """Whether a row is two texts, so that the model must tell one from the other."""
    truncation: bool = True
    """Whether text beyond what the model takes is cut; a request that asks for false is refused instead."""
    name: ClassVar[str]
    """As ``transformers.pipeline`` and Optimum call it."""
    outputs_read: ClassVar[tuple[str, ...]] = ("logits",)
    """The outputs of the served graph, which :meth:`answers` reads: the heads, or what the :attr:`tail` makes of them."""
    options: ClassVar[Mapping[str, Option]] = {"truncation": Option(bool)}
    """What requests may ask for, by name; each is a field too, its default."""
    carries_notes: ClassVar[bool] = False
    """Whether :meth:`features` gives notes, which then travel around the model."""
    needs_tokenizer: ClassVar[bool] = False
    """Whether :meth:`worded_answers` needs the tokenizer, which then travels to the last step too."""
    shaping: ClassVar[frozenset[str]] = frozenset()
    """Those of the options that :meth:`pipeline_answers` must know too, to show what the server answered."""
    fan_out: ClassVar[int] = 1
    """How many times the rows of the largest request the model must be ready to take at once."""
    text_keys: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    """What ``transformers.pipeline`` calls the texts of a row where it is written as an object."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`settings`."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        return cls(**values)

    def settings(self) -> dict[str, Any]:
        """The dataclass fields, JSON-ready."""
        return asdict(self)

    @property
    def row_keys(self) -> tuple[str, ...]:
        """Those of :attr:`text_keys` that a row has, in the order of :meth:`inputs`."""
        return self.text_keys[: len(self.inputs())]

    # -- the ensemble ---------------------------------------------------------------------------------------------------------

    def inputs(self) -> tuple[Tensor, ...]:
        """Tensors of a request: here one text."""
        return (Tensor("TEXT", "TYPE_STRING"),)

    @abstractmethod
    def outputs(self) -> tuple[Tensor, ...]:
        """Tensors of an answer."""

    @property
    @abstractmethod
    def example(self) -> dict[str, str]:
        """One request by tensor name: warm-up, readiness probe and the curl line that ``serve`` prints use it."""

    def long_example(self, repeats: int) -> dict[str, str]:
        """A request as long as can be: warm-up uses it. Here the example, repeated within each tensor."""
        return {name: " ".join([text] * repeats) for name, text in self.example.items()}

    def request_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every option of the task: as ``given``, else its default.

        Raises:
            ValueError: one is unknown, of another kind, or not allowed.
        """
        if unknown := [name for name in given if name not in self.options]:
            raise ValueError(f"{self.name} has no option {', '.join(unknown)}; it has {', '.join(self.options)}")
        values = {name: getattr(self, name) for name in self.options}
        return values | {name: self.options[name].check(name, value) for name, value in given.items()}

    def texts(self, columns: Columns) -> Sequence[Text]:
        """Rows for the tokenizer: each text, or each pair of texts."""
        return list(zip(*columns, strict=True)) if self.pair else columns[0]  # type: ignore[return-value]

    def features(self, columns: Columns, encoder: TextEncoder, options: Options) -> Features:
        """Rows of requests that ask for the same ``options`` → rows for the model, here one each.

        Raises:
            ValueError: a row cannot be taken; the message is for its client.
        """
        encodings = encoder.encode(self.texts(columns), truncation=options["truncation"])
        return Features(encodings, Origins(np.arange(len(encodings))))

    @abstractmethod
    def answers(self, outputs: Arrays, origins: Origins, options: Options) -> Arrays:
        """What the model says of many requests' rows at once → the tensors of :meth:`outputs`, ``[request rows, *dims]``; and under
        other names what :meth:`agreement` and :meth:`ties` need of an answer besides.

        Args:
            outputs: :attr:`outputs_read`, ``[model rows, …]``. Where one axis is the position, it may be longer than a row is.
        """

    def worded_answers(
        self,
        outputs: Arrays,
        origins: Origins,
        options: Options,
        tokenizer: Tokenizer | None,  # noqa: ARG002 - most answers are complete
    ) -> Arrays:
        """As :meth:`answers`, with what only the tokenizer can say (None where none is :attr:`needed <needs_tokenizer>`): what is
        served."""
        return self.answers(outputs, origins, options)

    # -- the client -----------------------------------------------------------------------------------------------------------

    def call(self, arguments: tuple[Any, ...], given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The arguments of a call to ``transformers.pipeline`` → its inputs, and its options. Here the inputs are its one
        argument.

        Raises:
            TypeError, ValueError: there are none, or more than the pipeline takes.
        """
        options = dict(given)
        inputs = (*arguments, options.pop("inputs")) if "inputs" in options else arguments
        if len(inputs) != 1:
            raise TypeError(f"{self.name} takes its inputs as one argument, not {len(inputs)}")
        return inputs[0], options

    def request_rows(self, inputs: Any) -> list[tuple[str, ...]]:
        """What a user hands to ``transformers.pipeline`` → one tuple of strings per row, in the order of :meth:`inputs`. Here a
        string, or a list of strings.

        Raises:
            TypeError, ValueError: the input is not of a form the pipeline takes; the message says which are.
        """
        rows = inputs if isinstance(inputs, list | tuple) else [inputs]
        for row in rows:
            if not isinstance(row, str):
                raise TypeError(f"each row must be a string, not {row!r:.80}")
        return [(row,) for row in rows]

    def refuse_options(self, given: Mapping[str, Any], *shown: str, known: Collection[str] = ()) -> None:
        """Refuse options of a call that are not the pipeline's.

        Args:
            given: those that are not the server's, or shape an answer too.
            shown: names of those the pipeline has.
            known: those it has too, but nobody is told of.

        Raises:
            TypeError: there is another one.
        """
        if unknown := [name for name in given if name not in {*shown, *known, *self.shaping}]:
            raise TypeError(f"{self.name} has no option {', '.join(unknown)}; it has {', '.join((*self.options, *shown))}")

    def asked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options of a call of the pipeline → those of the request. None leaves the choice to the server, as does silence.

        Raises:
            ValueError: the pipeline refuses them.
        """
        return {name: value for name, value in given.items() if name in self.options and value is not None}

    @abstractmethod
    def pipeline_answers(self, answers: Arrays, **options: Any) -> list[Any]:
        """Tensors of :meth:`outputs` → what ``transformers.pipeline`` gives for each row.

        Args:
            options: those the pipeline takes and :attr:`options` does not have: they only choose what is shown of an answer.
                Those of :attr:`shaping` too.

        Raises:
            TypeError: an option the pipeline does not have, or of another type.
        """

    def check_rows(self, rows: Sequence[tuple[str, ...]]) -> None:  # noqa: B027 - most refuse none
        """Refuse rows that the pipeline refuses, though the ensemble answers them.

        Raises:
            ValueError: one is such.
        """

    def completed(self, answers: list[Any], rows: Sequence[tuple[str, ...]]) -> list[Any]:  # noqa: ARG002 - most are complete
        """What :meth:`pipeline_answers` gave, with what of it only the request knows.

        Args:
            rows: of the request, as :meth:`request_rows` gave them.
        """
        return answers

    def pipeline_result(self, inputs: Any, answers: list[Any], options: Mapping[str, Any]) -> Any:  # noqa: ARG002 - tasks differ
        """One answer per row → what ``transformers.pipeline`` returns for ``inputs`` as a whole: a list for a list."""
        return answers if isinstance(inputs, list | tuple) else answers[0]
