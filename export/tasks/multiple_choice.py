"""Multiple choice: the best of several choices that go with a text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self, cast

import numpy as np

from export.tasks._encoder import ExportedEncoderTask
from export.tasks.base import Label, Prediction, Reference
from export.tasks.trained import Baseline, TrainedTask
from serving.runtime.tasks._candidates import first_rows
from serving.runtime.tasks._strings import read_strings, write_strings
from serving.runtime.tasks.multiple_choice import MultipleChoice
from serving.runtime.types import Arrays, Features, Flags, JsonValue

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CLOSE = 1e-4
"""The two best choices count as tied if their scores differ by less."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True)
class MultipleChoiceTask(ExportedEncoderTask[MultipleChoice], TrainedTask):
    """Trains and evaluates multiple choice.

    Attributes:
        labels: The data set's names of the positions (``choice1``, ``choice2``), where it has some. Answers are positions.
    """

    labels: tuple[str, ...] = ()

    name: ClassVar[str] = MultipleChoice.name
    auto_model: ClassVar[str] = "AutoModelForMultipleChoice"
    served_class: ClassVar[type[MultipleChoice]] = MultipleChoice
    has_pipeline: ClassVar[bool] = False
    grouped: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, str | None]] = {**MultipleChoice.columns, "label": "label"}

    @classmethod
    def from_config(cls, config: Mapping[str, object], *, pair: bool = True) -> Self:  # noqa: ARG003 - the head is always the same
        """Bind the task to any checkpoint with its head."""
        return cls(served=MultipleChoice())

    @classmethod
    def from_labels(cls, labels: Sequence[Label], *, names: Sequence[str], pair: bool) -> Self:  # noqa: ARG003 - always pairs
        """Check that the right choices differ."""
        if len(set(cast("Sequence[int]", labels))) < 2:
            raise ValueError(f"the right choice is {labels[0]!r} in every row: there is nothing to tell apart")
        return cls(served=MultipleChoice(), labels=_without_digits(names))

    @property
    def plain_texts(self) -> int:
        """Return 1: the choices are a list."""
        return 1

    @classmethod
    def read_row(cls, texts: tuple[object, ...], label: object) -> tuple[tuple[object, ...], Label]:
        """Read a text, a list of choices (also as JSON) and the right choice.

        The label is a position counted from 0, a letter (A is the first), or the text of the right choice.
        """
        if len(texts) != 2:
            raise ValueError(f"a row is one text and its choices, but there are {len(texts)} columns")
        text, given = texts
        choices = read_strings(given, "the column of choices") if isinstance(given, str) else _strings(given)
        if len(choices) < 2:
            raise ValueError("there is only one choice")
        return (text, write_strings(choices)), _position(choices, label)

    def with_evaluation_labels(self, labels: Sequence[Label], *, names: Sequence[str]) -> Self:  # noqa: ARG002
        """Take the data set's names of the positions."""
        return replace(self, labels=_without_digits(names))

    def reference(self, label: Label) -> Reference:
        """Return the position of the right choice."""
        if label in self.labels:
            return self.labels.index(label)
        position = int(label) if isinstance(label, str) and label.isdecimal() else label
        if not self.is_reference(position):
            raise ValueError(f"{label!r} is not the index of a choice (indices start at 0)")
        return position

    def is_reference(self, value: object) -> bool:
        """Accept a position."""
        return type(value) is int and value >= 0

    # -- training and evaluation ----------------------------------------------------------------------------------------------

    @property
    def metric(self) -> str:
        """Return accuracy."""
        return "accuracy"

    def baseline(self, training: Sequence[Reference], evaluated: Sequence[Reference]) -> Baseline:
        """Choose the position that is most often right in the training rows."""
        (position, _), *_ = Counter(cast("Sequence[int]", training)).most_common(1)
        return Baseline(f"always position {position}, the most frequent one of the training rows", [position] * len(evaluated))

    @property
    def default_metric(self) -> str:
        """Return accuracy."""
        return "accuracy"

    def targets(self, features: Features, references: Sequence[Reference]) -> dict[str, list[JsonValue]]:
        """Return 1 for the right choice of each row, 0 for the others."""
        mapping = features.origins.sample_mapping
        places = np.arange(len(mapping)) - first_rows(mapping)[mapping]
        return {"labels": (places == np.array(references)[mapping]).astype(int).tolist()}

    def predictions(self, answers: Arrays) -> list[Prediction]:
        """Return the position of the best choice."""
        return cast("list[Prediction]", answers["CHOICE"][:, 0].tolist())

    def confidence(self, answers: Arrays) -> npt.NDArray[np.float64] | None:
        """Return the score of the best choice."""
        return np.array([max(json.loads(scores)) for scores in answers["SCORES"][:, 0]])

    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """Compare the best choices."""
        return cast("npt.NDArray[np.float64]", (answers["CHOICE"] == original["CHOICE"])[:, 0].astype(np.float64))

    def score_changes(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """Return the changes of the original's choices."""
        rows = zip(answers["SCORES"][:, 0], original["SCORES"][:, 0], original["CHOICE"][:, 0].tolist(), strict=True)
        return np.array([abs(json.loads(ours)[best] - json.loads(theirs)[best]) for ours, theirs, best in rows], dtype=np.float64)

    def ties(self, original: Arrays) -> Flags:
        """Find rows whose two best scores are closer than :data:`CLOSE`."""
        rows = [sorted(json.loads(scores))[-2:] for scores in original["SCORES"][:, 0]]
        return np.array([len(row) > 1 and row[1] - row[0] < CLOSE for row in rows], dtype=np.bool_)

    def library(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_length: int,
        options: Mapping[str, JsonValue],  # noqa: ARG002 - the model has none
    ) -> Callable[[Sequence[str]], object]:
        """Ask the model itself, choice by choice, because there is no pipeline."""
        import torch

        def score(text: str, choice: str) -> torch.Tensor:
            fed = tokenizer([text], [choice], truncation=True, max_length=max_length, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                logits: torch.Tensor = model(**{name: tensor.unsqueeze(1) for name, tensor in fed.items()}).logits[0, 0]
            return logits

        def answer(row: Sequence[str]) -> object:
            scores = torch.stack([score(row[0], choice) for choice in json.loads(row[1])]).softmax(dim=0).tolist()
            best = scores.index(max(scores))
            return {"choice": best, "score": scores[best], "scores": scores}

        return answer


def _strings(given: object) -> list[str]:
    try:
        write_strings(given)
    except TypeError as error:
        raise ValueError(f"the choices {error}") from None
    return list(cast("Sequence[str]", given))


def _position(choices: Sequence[str], label: object) -> int:
    """Find which of ``choices`` a data set's cell means."""
    if isinstance(label, str):
        named = choices.index(label) if choices.count(label) == 1 else None
        counted = int(label) if label.isdecimal() else LETTERS.index(label) if len(label) == 1 and label in LETTERS else None
        if named is not None and counted not in (None, named):
            raise ValueError(f"the label {label!r} is ambiguous: the text of choice {named}, and the number of choice {counted}")
        label = label if named is None and counted is None else named if counted is None else counted
    if type(label) is not int:
        raise ValueError(f"the label must be a position, a letter or the text of one of the choices, not {label!r:.80}")
    if not 0 <= label < len(choices):
        withheld = " (a negative label means that the labels of this split are withheld: use another split)" if label < 0 else ""
        raise ValueError(f"the label is {label}, but there are {len(choices)} choices, counted from 0{withheld}")
    return label


def _without_digits(names: Sequence[str]) -> tuple[str, ...]:
    """Drop names that are numbers, because they are the same as the positions."""
    return () if all(name.isdecimal() for name in names) else tuple(names)


TASK = MultipleChoiceTask
