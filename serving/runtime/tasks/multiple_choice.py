"""Multiple choice: a text and several ways to go on (or answers to it) → the best of them, and the scores of all.

Each pair of the text and a choice is one row for the model, which gives it one number; scores are the softmax of a request
row's numbers. Rows may have any number of choices, and not the same.

``transformers`` has no pipeline for this task; answers are those of its ``AutoModelForMultipleChoice``. Where a pipeline is
wanted all the same, a row is ``{"text": …, "choices": […]}`` and its answer ``{"choice", "score", "scores"}``: the position of
the best choice, counted from 0, its score, and the scores in the order of the choices. Of equal scores the first is the best.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from ._candidates import require_few, softmax_by_owner, starts_of
from ._strings import json_column, read_strings, write_strings
from .base import Arrays, Columns, Features, Options, Origins, Task, Tensor, Text

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

    from ..tokenization import TextEncoder

CLOSE = 1e-4
"""Two best scores nearer to each other than this are a close call."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(Task):
    """Args:
    labels: what the data set calls the positions (``choice1``, ``choice2``), where it names them; answers are positions.
    """

    pair: bool = True
    labels: tuple[str, ...] = ()

    name: ClassVar[str] = "multiple-choice"
    auto_model: ClassVar[str] = "AutoModelForMultipleChoice"
    carries_notes: ClassVar[bool] = True
    fan_out: ClassVar[int] = 4
    grouped: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, str | None]] = {"text": "text", "text_pair": None, "choices": "choices", "label": "label"}
    text_keys: ClassVar[tuple[str, ...]] = ("text", "choices")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, pair: bool = True) -> Self:  # noqa: ARG003 - the head is always the same
        return cls()

    @classmethod
    def from_labels(cls, labels: Sequence[Any], *, names: Sequence[str], pair: bool) -> Self:  # noqa: ARG003 - always of pairs
        if len(set(labels)) < 2:
            raise ValueError(f"the right choice is {labels[0]!r} in every row: there is nothing to tell apart")
        return cls(labels=_without_digits(names))

    @classmethod
    def read_row(cls, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        """``texts``: the text, and a list of choices (or one written as JSON).

        The label is a position counted from 0, a letter of one (A is the first), or the text of the right choice.
        """
        if len(texts) != 2:
            raise ValueError(f"a row is one text and its choices; here are {len(texts)} columns")
        text, given = texts
        choices = read_strings(given, "the column of choices") if isinstance(given, str) else _strings(given)
        if len(choices) < 2:
            raise ValueError("there is one choice only")
        return (text, write_strings(choices)), _position(choices, label)

    def judged_by(self, labels: Sequence[Any], *, names: Sequence[str]) -> Self:  # noqa: ARG002 - the rows say no more
        return replace(self, labels=_without_digits(names))

    def reference(self, label: Any) -> Any:
        if label in self.labels:
            return self.labels.index(label)
        position = int(label) if isinstance(label, str) and label.isdecimal() else label
        if not self.is_reference(position):
            raise ValueError(f"{label!r} is no position of a choice, counted from 0")
        return position

    def is_reference(self, value: Any) -> bool:
        return type(value) is int and value >= 0

    def inputs(self) -> tuple[Tensor, ...]:
        return (Tensor("TEXT", "TYPE_STRING"), Tensor("CHOICES", "TYPE_STRING"))

    def outputs(self) -> tuple[Tensor, ...]:
        return (Tensor("CHOICE", "TYPE_INT64"), Tensor("SCORES", "TYPE_STRING"))

    @property
    def example(self) -> dict[str, str]:
        choices = ["lift it with a crane.", "wipe it with a cloth.", "paint it."]
        return {"TEXT": "To take the dust off a shelf,", "CHOICES": write_strings(choices)}

    def long_example(self, repeats: int) -> dict[str, str]:
        example = self.example
        return example | {"TEXT": " ".join([example["TEXT"]] * repeats)}

    def texts(self, columns: Columns) -> Sequence[Text]:
        return self._pairs(columns)[0]

    def features(self, columns: Columns, encoder: TextEncoder, options: Options) -> Features:
        pairs, owners = self._pairs(columns, most=encoder.most_rows)
        encodings = encoder.encode(pairs, truncation=options["truncation"])
        return Features(encodings, Origins(owners, [b""] * len(owners)))

    @staticmethod
    def _pairs(columns: Columns, *, most: int | None = None) -> tuple[list[Text], npt.NDArray[np.int64]]:
        """Each text with each of its choices; and which row both are of.

        Raises:
            ValueError: a row has no list of choices, or more than ``most``.
        """
        choices = [read_strings(given, "CHOICES") for given in columns[1]]
        for row in choices:
            require_few(row, "CHOICES", most)
        pairs: list[Text] = [(text, one) for text, row in zip(columns[0], choices, strict=True) for one in row]
        return pairs, np.repeat(np.arange(len(choices)), [len(row) for row in choices])

    def answers(self, outputs: Arrays, origins: Origins, options: Options) -> Arrays:  # noqa: ARG002 - nothing is to be chosen
        starts = starts_of(origins.owners)
        scores = softmax_by_owner(outputs["logits"][:, 0], origins.owners)
        rows = [row.tolist() for row in np.split(scores, starts[1:])] if len(starts) else []
        best = np.array([row.index(max(row)) for row in rows], dtype=np.int64)
        return {"CHOICE": best[:, None], "SCORES": json_column(rows)}

    def request_rows(self, inputs: Any) -> list[tuple[str, ...]]:
        return [self._request_row(row) for row in (inputs if isinstance(inputs, list | tuple) else [inputs])]

    @staticmethod
    def _request_row(row: Any) -> tuple[str, ...]:
        match row:
            case {"text": str(text), "choices": choices, **rest} if not rest:
                try:
                    return text, write_strings(choices)
                except TypeError as error:
                    raise TypeError(f"choices {error}") from None
        raise TypeError(f"each row must be {{'text': …, 'choices': […]}}, not {row!r:.80}")

    has_pipeline: ClassVar[bool] = False

    def pipeline_answers(self, answers: Arrays, **options: Any) -> list[Any]:
        """``{"choice", "score", "scores"}`` per row."""
        self.refuse_options(options)
        rows = zip(answers["CHOICE"][:, 0].tolist(), map(json.loads, answers["SCORES"][:, 0]), strict=True)
        return [{"choice": choice, "score": scores[choice], "scores": scores} for choice, scores in rows]

    @property
    def metric(self) -> str:
        return "accuracy"

    @property
    def main_metric(self) -> str:
        return "accuracy"

    def targets(self, features: Features, references: Sequence[Any]) -> dict[str, list[Any]]:
        owners = features.origins.owners
        places = np.arange(len(owners)) - starts_of(owners)[owners]
        return {"labels": (places == np.array(references)[owners]).astype(int).tolist()}

    def predictions(self, answers: Arrays) -> list[Any]:
        return cast(list[Any], answers["CHOICE"][:, 0].tolist())

    def confidence(self, answers: Arrays) -> npt.NDArray[np.float64] | None:
        return np.array([max(json.loads(scores)) for scores in answers["SCORES"][:, 0]])

    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """1 where the same choice is the best."""
        return cast("npt.NDArray[np.float64]", (answers["CHOICE"] == original["CHOICE"])[:, 0].astype(np.float64))

    def ties(self, original: Arrays) -> npt.NDArray[np.bool_]:
        rows = [sorted(json.loads(scores))[-2:] for scores in original["SCORES"][:, 0]]
        return np.array([len(row) > 1 and row[1] - row[0] < CLOSE for row in rows], dtype=np.bool_)


def _strings(given: Any) -> list[str]:
    try:
        write_strings(given)
    except TypeError as error:
        raise ValueError(f"the choices {error}") from None
    return list(given)


def _position(choices: Sequence[str], label: Any) -> int:
    """Which of ``choices`` a data set's cell means."""
    if isinstance(label, str):
        named = choices.index(label) if choices.count(label) == 1 else None
        counted = int(label) if label.isdecimal() else LETTERS.index(label) if len(label) == 1 and label in LETTERS else None
        if named is not None and counted not in (None, named):
            raise ValueError(f"the label {label!r} may be the text of choice {named} or stand for choice {counted}, counted from 0")
        label = label if named is None and counted is None else named if counted is None else counted
    if type(label) is not int:
        raise ValueError(f"the label must be a position, a letter or the text of one of the choices, not {label!r:.80}")
    if not 0 <= label < len(choices):
        withheld = " (a negative one means that the labels are withheld: use another split)" if label < 0 else ""
        raise ValueError(f"the label is {label}, and the choices are {len(choices)}, counted from 0{withheld}")
    return label


def _without_digits(names: Sequence[str]) -> tuple[str, ...]:
    """Names that are numbers say no more than the numbers."""
    return () if all(name.isdecimal() for name in names) else tuple(names)


TASK = MultipleChoice
