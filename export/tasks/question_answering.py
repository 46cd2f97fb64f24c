"""Question answering: the part of a text that answers a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self, TypedDict, cast

import numpy as np

from export.tasks._encoder import ExportedEncoderTask
from export.tasks.base import Label, Prediction, Reference
from export.tasks.trained import Baseline, TrainedTask
from serving.records import parse_json
from serving.runtime.tasks._spans import text_tokens
from serving.runtime.tasks.question_answering import WINDOW, QuestionAnswering
from serving.runtime.types import Arrays, Features, Flags, JsonValue, Origins

if TYPE_CHECKING:
    import numpy.typing as npt
    from tokenizers import Encoding
    from transformers import Pipeline, PreTrainedTokenizerFast

CLOSE = 1e-4
"""Two answers count as tied if their scores differ by less."""
MARGIN = "MARGIN"
"""FP32 ``[rows, 1]``: the score of the best answer minus that of the next one; infinite if there is only one answer.

Evaluation needs it; it is not a tensor of the ensemble.
"""


class KnownAnswer(TypedDict):
    """A right answer, as data sets have it."""

    text: str
    answer_start: int


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringTask(ExportedEncoderTask[QuestionAnswering], TrainedTask):
    """Trains and evaluates extractive question answering.

    Attributes:
        unanswerable: Whether some questions have no answer, so that an empty one is allowed in training and verification. What is
            served does as the pipeline of ``transformers``, which allows it only where ``handle_impossible_answer`` says so.
    """

    unanswerable: bool = False

    name: ClassVar[str] = QuestionAnswering.name
    auto_model: ClassVar[str] = "AutoModelForQuestionAnswering"
    truncating_options: ClassVar[Mapping[str, object]] = {}
    served_class: ClassVar[type[QuestionAnswering]] = QuestionAnswering
    heads: ClassVar[tuple[str, ...]] = QuestionAnswering.model_outputs
    metric_note: ClassVar[str] = "f1: mean over the rows of the overlap in words with the right answer"
    token_level: ClassVar[bool] = QuestionAnswering.token_level
    several_answers: ClassVar[bool] = True
    default_max_length: ClassVar[int] = WINDOW
    columns: ClassVar[Mapping[str, str | None]] = {**QuestionAnswering.columns, "label": "answers"}

    @classmethod
    def from_config(cls, config: Mapping[str, object], *, pair: bool = True) -> Self:  # noqa: ARG003 - rows are always two texts
        """Read from the config whether some questions have no answer."""
        tasks = cast("Mapping[str, Mapping[str, object]]", config.get("task_specific_params") or {})
        own = tasks.get(cls.name) or {}
        return cls(served=QuestionAnswering(), unanswerable=bool(own.get("handle_impossible_answer", False)))

    @classmethod
    def from_labels(cls, labels: Sequence[Label], *, names: Sequence[str], pair: bool) -> Self:  # noqa: ARG003
        """Allow an empty answer where some rows have none."""
        if not any(labels):
            raise ValueError("no row has an answer: there is nothing to learn")
        return cls(served=QuestionAnswering(), unanswerable=not all(labels))

    @property
    def evaluation_options(self) -> Mapping[str, JsonValue]:
        """Return the request parameter that allows an empty answer where some questions have none."""
        return {"handle_impossible_answer": True} if self.unanswerable else {}

    def idle_settings(self) -> Mapping[str, str]:
        """Return ``max_question_len``."""
        return {"max_question_len": "only slow tokenizers truncate questions"}

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Put the text in front of the question if the tokenizer pads on the left, as the pipeline of ``transformers`` does."""
        if tokenizer.padding_side != "left":
            return self
        padding = -1 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return replace(self, served=replace(self.served, text_first=True, pad_token_id=padding))

    @classmethod
    def read_row(cls, texts: tuple[object, ...], label: object) -> tuple[tuple[object, ...], Label]:
        """Read answers: ``[{"text", "answer_start"}, …]`` or ``{"text": […], "answer_start": […]}``, also as JSON; perhaps none."""
        answers = _read_answers(label)
        context = texts[-1]
        for answer in answers if isinstance(context, str) else ():
            start, text = answer["answer_start"], answer["text"]
            found = cast(str, context)[start : start + len(text)]
            if found != text:
                raise ValueError(f"the answer {text!r:.80} is not at character {start} of the context, where {found!r:.80} stands")
        return texts, cast(Label, answers)

    @classmethod
    def group_key(cls, texts: tuple[str, ...]) -> str | tuple[str, ...]:
        """Return the text: a model remembers texts that it was asked about."""
        return texts[1]

    def reference(self, label: Label) -> Reference:
        """Return the right answers."""
        return label

    def is_reference(self, value: object) -> bool:
        """Accept a list of answers."""
        return isinstance(value, list) and all(map(_is_answer, value))

    # -- training and evaluation ----------------------------------------------------------------------------------------------

    @property
    def metric(self) -> str:
        """Return the metric of SQuAD."""
        return "spans"

    @property
    def default_metric(self) -> str:
        """Return F1."""
        return "f1"

    @property
    def selectable_metrics(self) -> tuple[str, ...]:
        """Return the figures of SQuAD."""
        return ("f1", "exact_match")

    def baseline(self, training: Sequence[Reference], evaluated: Sequence[Reference]) -> Baseline:  # noqa: ARG002
        """Say that no question has an answer."""
        return Baseline("no answer to any question", [""] * len(evaluated))

    def head(self) -> dict[str, object]:
        """Record in the config whether some questions have no answer."""
        own = {"handle_impossible_answer": True} if self.unanswerable else None
        return {"num_labels": 2, "task_specific_params": own and {self.name: own}}

    def targets(self, features: Features, references: Sequence[Reference]) -> dict[str, list[JsonValue]]:
        """Return the first and last token of the first right answer. A window without all of it points at its first token."""
        mapping = features.origins.sample_mapping.tolist()
        answers = cast("Sequence[list[KnownAnswer]]", references)
        found = [
            _target(window, answers[row], text_first=self.served.text_first)
            for window, row in zip(features.encodings, mapping, strict=True)
        ]
        return {"start_positions": [start for start, _ in found], "end_positions": [end for _, end in found]}

    def answers(self, outputs: Arrays, origins: Origins) -> Arrays:
        """Compute the served answers, and their :data:`MARGIN`."""
        found = self.evaluated.find_answers(outputs, origins)
        margins = [row[0]["score"] - row[1]["score"] if len(row) > 1 else np.inf for row in found]
        return self.evaluated.tensors(found) | {MARGIN: np.array(margins, dtype=np.float32)[:, None]}

    def predictions(self, answers: Arrays) -> list[Prediction]:
        """Return the text of the best answer."""
        return [answer.decode() for answer in answers["ANSWER"][:, 0]]

    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """Compare the places of the best answers."""
        same = (answers["START"] == original["START"]) & (answers["END"] == original["END"])
        return cast("npt.NDArray[np.float64]", same[:, 0].astype(np.float64))

    def score_changes(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """Return the changes of the best answers that are the same."""
        same = self.agreement(answers, original) == 1
        return cast("npt.NDArray[np.float64]", np.abs(answers["SCORE"].astype(np.float64) - original["SCORE"])[same, 0])

    def ties(self, original: Arrays) -> Flags:
        """Find rows whose two best answers are closer than :data:`CLOSE`."""
        return original[MARGIN][:, 0] < CLOSE

    @property
    def truncated_texts(self) -> Sequence[int]:
        """Return the position of the context. A question is never truncated."""
        return (1,)

    def asked_options(self, max_length: int) -> Mapping[str, object]:
        """Return ``max_length`` tokens per window, and whether an empty answer is allowed, as in verification."""
        return {"max_seq_len": max_length, "handle_impossible_answer": self.evaluated.handle_impossible_answer}

    def ask_pipeline(self, pipeline: Pipeline, rows: Sequence[Sequence[str]], *, max_length: int) -> list[object]:
        """Ask with the :meth:`asked_options`. To one row the pipeline gives no list, except of its ``top_k`` answers."""
        questions, contexts = map(list, zip(*rows, strict=True))
        found = pipeline(question=questions, context=contexts, batch_size=len(rows), **self.asked_options(max_length))
        return [found] if len(rows) == 1 else cast("list[object]", found)


def _read_answers(label: object) -> list[KnownAnswer]:
    found = label
    try:
        if isinstance(label, str):
            found = parse_json(label)
        if isinstance(found, dict):  # the Hub's data sets have parallel lists
            pairs = zip(found["text"], found["answer_start"], strict=True)
            found = [{"text": text, "answer_start": start} for text, start in pairs]
        rows = cast("Sequence[Mapping[str, object]]", found)
        answers: list[dict[str, object]] = [{"text": row["text"], "answer_start": row["answer_start"]} for row in rows]
    except (ValueError, TypeError, KeyError):
        answers = [{}]
    if not all(map(_is_answer, answers)):
        raise ValueError("the answers are not [{text, answer_start}, …], nor {text: […], answer_start: […]}")
    return cast("list[KnownAnswer]", answers)


def _is_answer(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != {"text", "answer_start"}:
        return False
    text, start = value["text"], value["answer_start"]
    return isinstance(text, str) and bool(text) and type(start) is int and start >= 0


def _target(window: Encoding, answers: Sequence[KnownAnswer], *, text_first: bool) -> tuple[int, int]:
    """Find the first and the last token of the first of ``answers``; (0, 0) where the window does not hold all of it."""
    first, count = text_tokens(window, text_first=text_first)
    if not answers or not count:
        return 0, 0
    begin = answers[0]["answer_start"]
    end = begin + len(answers[0]["text"])
    offsets = np.array(window.offsets[first : first + count])
    if offsets[0, 0] > begin or offsets[-1, 1] < end:
        return 0, 0
    start, stop = np.flatnonzero(offsets[:, 0] <= begin)[-1], np.flatnonzero(offsets[:, 1] >= end)[0]
    return (int(first + start), int(first + stop)) if start <= stop else (0, 0)


TASK = QuestionAnsweringTask
