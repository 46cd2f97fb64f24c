"""Types that the steps of an ensemble, the tasks and the tokenizer share. Imports only the standard library and numpy."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing import TypeAlias

    from tokenizers import Encoding

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
"""A value that JSON can express."""

Text = str | tuple[str, str]
"""One row for the tokenizer: a text, or a pair of texts."""

TextColumns = Sequence[Sequence[str]]
"""Rows by column: one sequence of strings per input tensor of the ensemble."""

Arrays = dict[str, npt.NDArray[Any]]
"""Tensors by name. The first axis of each tensor is the row."""

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Tensor:
    """Describes an input or output tensor as Triton configures it.

    Attributes:
        name: Name that clients use.
        dtype: Triton's name of the data type: ``TYPE_STRING``, ``TYPE_FP32``, ``TYPE_INT64`` …
        dims: Shape of one row, without the batch dimension. -1 where it is dynamic.
    """

    name: str
    dtype: str
    dims: tuple[int, ...] = (1,)


class _Short(reprlib.Repr):
    def repr_int(self, value: int, level: int) -> str:
        try:
            return super().repr_int(value, level)
        except ValueError:  # Python writes no more than 4,300 digits
            return "a number with too many digits"


def shown(value: object) -> str:
    """Return the beginning of a value for a message, however long it is and however deep lists are nested in it."""
    if isinstance(value, str):
        return repr(value[:80])[:80]
    short = _Short()
    short.maxlevel, short.maxlong, short.maxother = 3, 80, 80
    return short.repr(value)[:80]


def one_of(choices: Collection[str]) -> str:
    """Return what a value must be, for a message: ``one of a, b``, or the only choice."""
    return f"{'one of ' if len(choices) > 1 else ''}{', '.join(choices)}"


def require_text(what: str, text: str) -> None:
    """Check that a string can be written as UTF-8. One that comes from JSON may hold half of a surrogate pair.

    Args:
        what: The beginning of the message.
        text: The string.

    Raises:
        ValueError: It cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        near = shown(text[max(error.start - 20, 0) : error.start + 20])
        raise ValueError(f"{what} holds half of a surrogate pair, which is no text: {near}") from None


UNWRITABLE = "is nested too deeply, contains itself, or has a number with too many digits"
"""Says of a value why ``json.dumps`` raises another error than a ``TypeError``."""


def parse_client_json(what: str, text: str | bytes, *, remark: str = "") -> Any:
    """Parse JSON of a client.

    Args:
        what: The beginning of the message.
        text: The JSON; bytes are UTF-8.
        remark: What the message adds where the text is no JSON at all.

    Raises:
        ValueError: It is not JSON, is nested too deeply, or has a number with too many digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{what}: byte {error.start} is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is not JSON{remark}: {error}") from None
    except ValueError:  # Python reads no whole number of more than 4,300 digits
        raise ValueError(f"{what} has a number with too many digits") from None


def without_request_id(parameters: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the parameters of a Triton request that are options: at ``/generate``, Triton gives the request's ``id`` as one, too.

    Raises:
        ValueError: The ``id`` is not a string.
    """
    if not isinstance(parameters.get("id", ""), str):
        raise ValueError("id must be a string")
    return {name: value for name, value in parameters.items() if name != "id"}


class OptionTypeError(ValueError, TypeError):
    """An option has a value of another type. Also a ``TypeError``, which ``transformers.pipeline`` raises for most of them."""


class OptionChoiceError(ValueError, KeyError):
    """An option has none of the strings that it may have. Also a ``KeyError``, which ``transformers.pipeline`` raises for them."""

    def __str__(self) -> str:
        """Return the message itself; a ``KeyError`` shows it in quotation marks."""
        return str(self.args[0])


SMALLEST_WHOLE, LARGEST_WHOLE = -(2**63), 2**63 - 1
"""Whole numbers that a Triton request parameter can be: INT64."""
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


@dataclass(frozen=True)
class Setting:
    """Describes a setting of a task, which a user chooses for a checkpoint, a request as a Triton parameter, or both.

    The task has a dataclass field of the same name, which holds the default.

    Attributes:
        kind: ``bool``, ``int``, ``float`` or ``str``.
        choices: Allowed strings. Empty: any string.
        minimum: Smallest allowed number. None: any; of whole numbers, any INT64.
        maximum: Largest allowed number, likewise.
        help: What it means, in one sentence.
    """

    kind: type
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    help: str = ""

    def check(self, name: str, value: object) -> bool | int | float | str:
        """Return ``value`` as the option's kind. A whole number is accepted for a ``float``.

        Raises:
            OptionTypeError: The value has another kind.
            OptionChoiceError: It is none of the choices.
            ValueError: It is too small or too large. All are ``ValueError``, and their messages say what is allowed.
        """
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = _as_float(value)
        elif type(value) is not self.kind:
            raise OptionTypeError(f"option {name} must be {_KINDS[self.kind]}, not {shown(value)}")
        if self.choices and value not in self.choices:
            raise OptionChoiceError(f"option {name} must be {one_of(self.choices)}, not {shown(value)}")
        if isinstance(value, str):
            require_text(f"option {name}", value)
        minimum = SMALLEST_WHOLE if self.minimum is None and self.kind is int else self.minimum
        maximum = LARGEST_WHOLE if self.maximum is None and self.kind is int else self.maximum
        if minimum is not None and not value >= minimum:  # type: ignore[operator]  # NaN fails this check too
            raise ValueError(f"option {name} must be {_bound(minimum)} or more, not {shown(value)}")
        if maximum is not None and not value <= maximum:  # type: ignore[operator]
            raise ValueError(f"option {name} must be {_bound(maximum)} or less, not {shown(value)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"option {name} must be a finite number, not {value}")
        return value  # type: ignore[return-value]

    def parse(self, text: str) -> bool | int | float | str:
        """Parse a command line value as the option's kind. A string that cannot be parsed is returned unchanged."""
        if self.kind is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        try:
            return self.kind(text)  # type: ignore[no-any-return]
        except ValueError:
            return text


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:  # it has more than 308 digits
        return math.inf if value > 0 else -math.inf


def _bound(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


@dataclass(frozen=True)
class Origins:
    """Maps the rows that the model sees to the request rows they were made from.

    One request row can become several model rows: windows of a long text, or one row per candidate label.

    Attributes:
        sample_mapping: INT64 ``[model rows]``, the position of the request row of each model row (as
            ``overflow_to_sample_mapping`` of ``transformers``). Ascending, without gaps.
        metadata: One entry per model row: what its answer needs besides the model's outputs. Empty where the task
            :attr:`carries none <serving.runtime.tasks._encoder.EncoderTask.carries_metadata>`.
    """

    sample_mapping: Integers
    metadata: Sequence[bytes] = ()

    @property
    def count(self) -> int:
        """Return the number of request rows."""
        return int(self.sample_mapping[-1]) + 1 if len(self.sample_mapping) else 0


@dataclass(frozen=True)
class Features:
    """Holds rows for the model: their tokens, and the request rows they come from.

    Attributes:
        encodings: The tokens of each model row.
        origins: Where the model rows come from.
        windows: Whether the model rows of a request row are windows, which together hold the whole text.
    """

    encodings: Sequence[Encoding]
    origins: Origins
    windows: bool = False

    def __post_init__(self) -> None:
        """Check that every row has a token.

        Raises:
            NoTokensError: A row has none.
        """
        if not all(map(len, self.encodings)):
            empty = next(index for index, encoding in enumerate(self.encodings) if not len(encoding))
            raise NoTokensError(
                f"row {self.origins.sample_mapping[empty]} has no tokens, so the model cannot answer it: "
                "its tokenizer makes none of an empty text"
            )

    @property
    def truncated_rows(self) -> Sequence[int]:
        """Return the positions of the request rows that were truncated in one of their model rows."""
        if self.windows:
            return ()
        mapping = self.origins.sample_mapping
        return [int(mapping[row]) for row, encoding in enumerate(self.encodings) if encoding.overflowing]


class NoTokensError(ValueError):
    """A row has no tokens: its text is empty, and the tokenizer adds no special tokens."""


class TooManyRowsError(ValueError):
    """One row of a request would become more model rows than the model accepts."""


class TextTooLongError(ValueError):
    """A text is longer than is tokenized for one row, and cannot be cut before."""
