"""Defines what a task says about being served: tensors, request parameters, the client's forms.

How a request is answered stands in :mod:`serving.runtime.tasks._encoder`, for models that answer in one execution.

Triton runs this code, so it imports only the standard library and numpy. The other half of a task stands in ``export/tasks``.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, cast, get_args, get_origin, get_type_hints

import numpy as np

from ..suggestions import unknown_options
from ..types import Arrays, JsonValue, Setting, Tensor

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11


def _has_type(value: object, kind: object) -> bool:
    """Return whether a JSON value has the type of a dataclass field: a plain type, a tuple, a mapping or a union of these."""
    if kind is object:
        return True
    if get_origin(kind) is Mapping:
        return isinstance(value, Mapping) and all(_has_type(one, get_args(kind)[1]) for one in value.values())
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(_has_type(one, get_args(kind)[0]) for one in value)
    return any(_has_type(value, one) for one in get_args(kind)) or type(value) is kind or (kind is float and type(value) is int)


@dataclass(frozen=True, kw_only=True)
class ServedTask(ABC):
    """A task as Triton and its clients use it, bound to one checkpoint.

    The dataclass fields are its settings: JSON-ready, recorded in the bundle and read in Triton. A field that is named in
    :attr:`options` is the default of that request parameter.
    """

    name: ClassVar[str]
    """Name of the task in ``transformers.pipeline``."""
    options: ClassVar[Mapping[str, Setting]] = {}
    """Request parameters by name. Each is a dataclass field too, which holds its default."""
    presentation_options: ClassVar[frozenset[str]] = frozenset()
    """Those of the options that :meth:`format_answers` must know too, to format what the server answered."""
    request_only: ClassVar[frozenset[str]] = frozenset()
    """Those of the options that are no settings of a checkpoint. Of a pipeline call they are options only where
    :attr:`call_options` adds them."""
    client_options: ClassVar[tuple[str, ...]] = ()
    """Further options of ``transformers.pipeline``, which the client applies."""
    ignores_unknown_options: ClassVar[bool] = False
    """Whether ``transformers.pipeline`` ignores options that it does not have. Otherwise it raises ``TypeError``."""
    pipeline_refusals: ClassVar[tuple[str, ...]] = ()
    """Parts of the messages about rows for which ``transformers.pipeline`` raises its ``PipelineException``."""
    text_keys: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    """Keys of the texts of a row where ``transformers.pipeline`` takes it as a dict."""
    positional: ClassVar[tuple[str, ...]] = ("inputs",)
    """Names of the positional arguments of ``transformers.pipeline``, the inputs first."""
    lists_iterables: ClassVar[bool] = False
    """Whether ``transformers.pipeline`` makes lists of iterables that are not generators. Otherwise it does not take them."""
    columns: ClassVar[Mapping[str, str | None]] = {"text": "text", "text_pair": None}
    """Default columns of a file's texts: ``text``, ``text_pair`` and, for some tasks, ``choices``."""
    reads_words: ClassVar[bool] = False
    """Whether a file may give a text as a list of words, which are joined by spaces."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, JsonValue]) -> Self:
        """Rebuild a task from what :meth:`to_settings` gave.

        Raises:
            ValueError: A setting is unknown or missing, or its value has another type than its field.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(settings.keys() - known):
            raise ValueError(f"{cls.name} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        types = get_type_hints(cls)
        for name, value in settings.items():
            if not _has_type(value, types[name]):
                kind = types[name].__name__ if isinstance(types[name], type) else types[name]
                raise ValueError(f"setting {name} of {cls.name} must be {kind}, not {value!r:.80}")
        try:
            return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})  # type: ignore[arg-type]
        except TypeError as error:  # a required field is missing
            raise ValueError(f"the settings of {cls.name} are incomplete: {error}") from None

    def to_settings(self) -> dict[str, JsonValue]:
        """Return the dataclass fields, JSON-ready."""
        return asdict(self)

    @property
    def row_keys(self) -> tuple[str, ...]:
        """Return those of :attr:`text_keys` that a row has, in the order of :meth:`inputs`."""
        return self.text_keys[: len(self.inputs())]

    # -- the ensemble ---------------------------------------------------------------------------------------------------------

    def inputs(self) -> tuple[Tensor, ...]:
        """Return the tensors of a request. Default: one text."""
        return (Tensor("TEXT", "TYPE_STRING"),)

    @abstractmethod
    def outputs(self) -> tuple[Tensor, ...]:
        """Return the tensors of an answer."""

    @property
    @abstractmethod
    def example(self) -> dict[str, str]:
        """Return one request by tensor name, for warm-up, the readiness probe and the curl line that ``serve`` prints."""

    def with_options(self, given: Mapping[str, JsonValue]) -> Self:
        """Return the task with the parameters of a request in place of its defaults.

        Cached properties are shared, so none of them may depend on an option.

        Raises:
            ValueError: A parameter is unknown, of another kind, or not allowed. The message is for the client.
        """
        if unknown := [name for name in given if name not in self.options]:
            raise ValueError(unknown_options(self.name, unknown, self.options))
        if not given:
            return self
        checked = {name: self.options[name].check(name, value) for name, value in given.items()}
        chosen = replace(self, **checked)  # type: ignore[arg-type]
        chosen.check_options()
        names = {field.name for field in fields(self)}
        vars(chosen).update({name: value for name, value in vars(self).items() if name not in names})  # cached properties
        return chosen

    def check_options(self) -> None:  # noqa: B027 - most options are checked one by one
        """Check the options against each other and against the model.

        Raises:
            ValueError: One is not allowed. The message is for the client.
        """

    # -- the client -----------------------------------------------------------------------------------------------------------

    def parse_call(self, arguments: tuple[object, ...], given: Mapping[str, object]) -> tuple[object, dict[str, object]]:
        """Split the arguments of a call to ``transformers.pipeline`` into inputs and options.

        Default: the inputs are its one argument.

        Raises:
            TypeError: There are no inputs, or more than the pipeline takes.
            ValueError: The inputs do not go together.
        """
        options = dict(given)
        inputs = (*arguments, options.pop("inputs")) if "inputs" in options else arguments
        if len(inputs) != 1:
            raise TypeError(f"{self.name} takes its inputs as one argument, not {len(inputs)}")
        return inputs[0], options

    def parse_items(self, items: object) -> list[tuple[str, ...]]:
        """Convert items of inputs that are read one by one to rows. Default: as for a list of them."""
        rows = self.parse_inputs(items)
        self.check_rows(rows)
        return rows

    def parse_inputs(self, inputs: object) -> list[tuple[str, ...]]:
        """Convert the inputs of ``transformers.pipeline`` to rows. Default: a string, or a list of strings.

        Returns:
            One tuple of strings per row, in the order of :meth:`inputs`.

        Raises:
            TypeError: The inputs have a form that the pipeline does not take. The message says which it takes. This and the next
                ones are the classes that the pipeline raises.
            KeyError: As ``TypeError``.
            ValueError: As ``TypeError``.
        """
        rows: list[tuple[str, ...]] = []
        for row in inputs if isinstance(inputs, list | tuple) else [inputs]:
            if not isinstance(row, str):
                raise ValueError(f"each row must be a string, not {row!r:.80}")
            rows.append((row,))
        return rows

    def check_rows(self, rows: Sequence[tuple[str, ...]]) -> None:  # noqa: B027 - most tasks take every row
        """Refuse rows that the pipeline refuses although the ensemble answers them.

        Raises:
            ValueError: There is such a row.
        """

    def sanitize_parameters(self, given: Mapping[str, object]) -> tuple[dict[str, JsonValue], dict[str, object]]:
        """Convert the options of a pipeline call to request parameters, and to what :meth:`format_answers` needs of them.

        None leaves the choice to the server. An option that the pipeline ignores is left out, with a warning.

        Returns:
            The request parameters, and the options of :meth:`format_answers`.

        Raises:
            TypeError: There is no such option, or it has another type.
            KeyError: An option is not one of its choices.
            ValueError: An option has a value that the pipeline refuses.
        """
        known = self.call_options
        if unknown := [name for name in given if name not in known]:
            message = unknown_options(self.name, unknown, known)
            if not self.ignores_unknown_options:
                raise TypeError(message)
            warnings.warn(f"ignored, as by transformers.pipeline: {message}", UserWarning, stacklevel=2)
        shown = {*self.client_options, *self.presentation_options}
        return (
            self.request_parameters({name: given[name] for name in known if name in given and name in self.options}),
            {name: value for name, value in given.items() if name in shown},
        )

    def expand_options(
        self, defaults: Mapping[str, object], given: Mapping[str, object]
    ) -> tuple[Mapping[str, object], Mapping[str, object]]:
        """Replace an option that stands for others by these. Default: there is none.

        Args:
            defaults: Options of the client.
            given: Options of a call.

        Raises:
            TypeError: Such an option has another type.
            ValueError: It is not supported.
        """
        return defaults, given

    def joined_parameters(self, usual: Mapping[str, JsonValue], own: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """Return the request parameters of a client with those of a call, which come first."""
        return {**usual, **own}

    def pipeline_defaults(self) -> dict[str, JsonValue]:
        """Return request parameters of a pipeline without options, where they are not the server's defaults. Default: none."""
        return {}

    @property
    def call_options(self) -> tuple[str, ...]:
        """Return the names of the options that a pipeline call takes."""
        return (*(name for name in self.options if name not in self.request_only), *self.client_options)

    def takes(self, name: str) -> bool:
        """Return whether a pipeline call takes an option of this name."""
        return name in self.call_options

    def request_rows(self, rows: Sequence[tuple[str, ...]]) -> tuple[Sequence[tuple[str, ...]], dict[str, JsonValue]]:
        """Return the strings of a request's tensors, and request parameters that describe them. Default: the rows, and none.

        Args:
            rows: As :meth:`parse_inputs` gave them.
        """
        return rows, {}

    def sent_parameters(self, given: Mapping[str, object]) -> Mapping[str, object]:
        """Return the request parameters as the server takes them. Default: as they are.

        Args:
            given: What :meth:`sanitize_parameters` gave for the whole call.
        """
        return given

    def request_parameters(self, given: Mapping[str, object]) -> dict[str, JsonValue]:
        """Convert values of :attr:`options` to request parameters: without None, with Python's own types.

        0 and 1 are truth values for an option that is one. The pipeline takes any object there.
        """
        found: dict[str, JsonValue] = {}
        for name, value in given.items():
            plain = value.item() if isinstance(value, np.generic) else value
            if self.options[name].kind is bool and isinstance(plain, int):
                plain = bool(plain)
            if plain is not None:
                found[name] = cast(JsonValue, plain)
        return found

    @abstractmethod
    def format_answers(self, answers: Arrays, **options: object) -> Sequence[object]:
        """Convert the tensors of :meth:`outputs` to what ``transformers.pipeline`` gives for each row.

        Args:
            answers: Tensors of one request, ``[request rows, *dims]``.
            options: What :meth:`sanitize_parameters` gave for it.
        """

    def add_inputs(
        self,
        answers: Sequence[object],
        rows: Sequence[tuple[str, ...]],  # noqa: ARG002
        **options: object,  # noqa: ARG002
    ) -> Sequence[object]:
        """Add to the answers of :meth:`format_answers` what only the request knows. Default: nothing.

        Args:
            answers: One per row.
            rows: Rows of the request, as :meth:`parse_inputs` gave them.
            options: What :meth:`sanitize_parameters` gave for it.
        """
        return answers

    def format_result(self, inputs: object, answers: Sequence[object], options: Mapping[str, object]) -> object:  # noqa: ARG002
        """Convert one answer per row to what ``transformers.pipeline`` returns for ``inputs``: a list for a list."""
        return answers if isinstance(inputs, list | tuple) else answers[0]
