"""Question answering: a question and a text → the part of the text that answers it.

As the ``QuestionAnsweringPipeline`` of ``transformers`` 4.57 does it with a fast tokenizer, and with its ways:

* ``max_question_len`` has no effect: only its slow tokenizers cut questions. A question that leaves a window no room is refused.
* Answers of equal text, whatever their case and place, are one: it stands where the first was found, and its score is their sum. So
  overlapping windows count twice and scores may be above 1.
* ``align_to_words`` widens an answer to whole words as the tokenizer splits them, which in languages without spaces may be much.

Where it is not followed: it fills up to ``top_k`` with spans of probability 0 (which ones depends on numpy's version); here they
are left out. Tokenizers that pad on the left, as XLNet's, have it put the text before the question; here the question always comes
first. And a special token that opens a row is its ``[CLS]``, which is so wherever there is one (OPT's is not meant as such).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from ._spans import Windows, best_spans, notes_of, probabilities, text_tokens
from .base import Arrays, Columns, Features, Option, Options, Origins, Task, Tensor, TooManyRowsError

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

    from tokenizers import Encoding

    from ..tokenization import TextEncoder

WINDOW, OVERLAP = 384, 128
"""Tokens of a window and of what it has in common with the one before, at most, where a request does not say."""
MOST_ANSWERS = 1000
"""The largest ``top_k``."""
CLOSE = 1e-4
"""Two answers whose scores are nearer to each other than this are a close call."""
MARGIN = "MARGIN"
"""FP32 ``[rows, 1]``: how far the best answer is ahead of the next, infinite where only one was looked at. Judging needs it; it
is no tensor of the ensemble."""


@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(Task):
    """Args:
    top_k: answers given.
    doc_stride: tokens that a window has in common with the one before; None: half of it, 128 at most.
    max_answer_len: tokens of an answer, at most.
    max_seq_len: tokens of a window; None: 384, or what the model takes if that is less.
    max_question_len: without effect, see above.
    handle_impossible_answer: no answer (an empty one) is one too.
    align_to_words: answers are widened to whole words.
    """

    pair: bool = True
    top_k: int = 1
    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int | None = None
    max_question_len: int = 64
    handle_impossible_answer: bool = False
    align_to_words: bool = True

    name: ClassVar[str] = "question-answering"
    auto_model: ClassVar[str] = "AutoModelForQuestionAnswering"
    heads: ClassVar[tuple[str, ...]] = ("start_logits", "end_logits")
    outputs_read: ClassVar[tuple[str, ...]] = heads
    token_level: ClassVar[bool] = True
    carries_notes: ClassVar[bool] = True
    fan_out: ClassVar[int] = 4
    default_max_length: ClassVar[int] = WINDOW
    columns: ClassVar[Mapping[str, str | None]] = {"text": "question", "text_pair": "context", "label": "answers"}
    text_keys: ClassVar[tuple[str, ...]] = ("question", "context")
    options: ClassVar[Mapping[str, Option]] = {
        "top_k": Option(int, minimum=1),
        "doc_stride": Option(int, minimum=0),
        "max_answer_len": Option(int, minimum=1),
        "max_seq_len": Option(int, minimum=1),
        "max_question_len": Option(int, minimum=1),
        "handle_impossible_answer": Option(bool),
        "align_to_words": Option(bool),
    }

    # -- from checkpoints and data ---------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, pair: bool = True) -> Self:  # noqa: ARG003 - rows are always two texts
        own = (config.get("task_specific_params") or {}).get(cls.name) or {}
        return cls(handle_impossible_answer=bool(own.get("handle_impossible_answer", False)))

    @classmethod
    def from_labels(cls, labels: Sequence[Any], *, names: Sequence[str], pair: bool) -> Self:  # noqa: ARG003
        if not any(labels):
            raise ValueError("no row has an answer: there is nothing to learn")
        return cls(handle_impossible_answer=not all(labels))

    @classmethod
    def read_row(cls, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        """Answers: ``[{"text", "answer_start"}, …]`` or ``{"text": […], "answer_start": […]}``, also as JSON; perhaps none."""
        answers = _read_answers(label)
        for answer in answers if isinstance(texts[-1], str) else ():
            start, text = answer["answer_start"], answer["text"]
            found = texts[-1][start : start + len(text)]
            if found != text:
                raise ValueError(f"the answer {text!r:.80} is not at character {start} of the context, where {found!r:.80} stands")
        return texts, answers

    @classmethod
    def kept_together(cls, texts: tuple[str, ...]) -> Any:
        """The text: a model remembers what it was asked about."""
        return texts[1]

    def reference(self, label: Any) -> Any:
        return label

    def is_reference(self, value: Any) -> bool:
        return isinstance(value, list) and all(map(_is_answer, value))

    # -- the ensemble ----------------------------------------------------------------------------------------------------------

    def inputs(self) -> tuple[Tensor, ...]:
        return Tensor("QUESTION", "TYPE_STRING"), Tensor("CONTEXT", "TYPE_STRING")

    def outputs(self) -> tuple[Tensor, ...]:
        """The best answer; and in ``ANSWERS`` a JSON list of the ``top_k`` best, each as the pipeline gives it."""
        return (
            Tensor("ANSWER", "TYPE_STRING"),
            Tensor("SCORE", "TYPE_FP32"),
            Tensor("START", "TYPE_INT64"),
            Tensor("END", "TYPE_INT64"),
            Tensor("ANSWERS", "TYPE_STRING"),
        )

    @property
    def example(self) -> dict[str, str]:
        return {"QUESTION": "Where do I live?", "CONTEXT": "My name is Wolfgang and I live in Berlin."}

    def long_example(self, repeats: int) -> dict[str, str]:
        """The text alone is repeated, until it fills a window: it may take any number of them."""
        text = self.example["CONTEXT"]
        return self.example | {"CONTEXT": " ".join([text] * (1 + repeats // len(text.split())))}

    def request_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        options = super().request_options(given)
        if options["top_k"] > MOST_ANSWERS:
            raise ValueError(f"option top_k must be {MOST_ANSWERS} or less, not {options['top_k']}")
        return options

    def features(self, columns: Columns, encoder: TextEncoder, options: Options) -> Features:
        length = options["max_seq_len"] or min(WINDOW, encoder.max_length)
        stride = options["doc_stride"]
        stride = min(length // 2, OVERLAP) if stride is None else stride
        if length > encoder.max_length:
            raise ValueError(f"max_seq_len is {length}, and the model takes {encoder.max_length} tokens at most")
        if stride > length:
            raise ValueError(f"doc_stride ({stride}) is larger than max_seq_len ({length})")
        rows = list(zip(*columns, strict=True))
        try:
            encodings, owners = encoder.windows(rows, stride=stride, max_length=length)
        except TooManyRowsError:
            raise
        except ValueError:
            row = next(row for row, texts in enumerate(rows) if not _fits(texts, encoder, stride, length))
            raise ValueError(
                f"row {row}: a window of {length} tokens has no room for the question, {stride} tokens of overlap (doc_stride) and "
                f"some of the text: {rows[row][0]!r:.80}"
            ) from None
        return Features(encodings, Origins(owners, notes_of(encodings, owners, columns[1], words=options["align_to_words"])))

    def answers(self, outputs: Arrays, origins: Origins, options: Options) -> Arrays:
        windows = Windows.read(origins.notes, outputs["start_logits"].shape[1])
        start = probabilities(outputs["start_logits"], windows)
        end = probabilities(outputs["end_logits"], windows)
        none = (start[:, 0] * end[:, 0]).tolist()
        start[:, 0] = end[:, 0] = 0.0
        # aligned to words some become one, so the pipeline looks at more than are asked for
        count = options["top_k"] * 2 + 10 if options["align_to_words"] else options["top_k"]
        begins, ends, scores = windows.places(*best_spans(start, end, count, options["max_answer_len"]))
        bounds = np.searchsorted(origins.owners, np.arange(origins.count + 1)).tolist()
        found = []
        for first, last in itertools.pairwise(bounds):
            spans = zip(*(part[first:last].ravel().tolist() for part in (begins, ends, scores)), strict=True)
            row = _merged(windows.texts[first].decode(), spans)
            if options["handle_impossible_answer"]:
                row.append(_answer(min(none[first:last]), 0, 0, ""))
            row.sort(key=_score, reverse=True)
            found.append(row or [_answer(0.0, 0, 0, "")])
        return _tensors(found, options["top_k"])

    # -- the client ------------------------------------------------------------------------------------------------------------

    def call(self, arguments: tuple[Any, ...], given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """``question=…, context=…`` (strings, lists, or questions and one text), both in order, or rows; empty ones are refused."""
        options = dict(given)
        if len(arguments) == 2 and all(isinstance(argument, str) for argument in arguments):
            inputs: Any = _row(*arguments)
        elif arguments:
            inputs = arguments[0] if len(arguments) == 1 else list(arguments)
        elif "question" in options and "context" in options:
            inputs = _rows(options.pop("question"), options.pop("context"))
        else:
            raise TypeError("give question=… and context=…")
        return inputs, options

    def check_rows(self, rows: Sequence[tuple[str, ...]]) -> None:
        for row in rows:
            if not all(row):
                raise ValueError(f"`{self.row_keys[row.index('')]}` cannot be empty")

    def request_rows(self, inputs: Any) -> list[tuple[str, ...]]:
        if isinstance(inputs, dict) and isinstance(inputs.get("question"), list):
            inputs = _rows(**inputs) if set(inputs) == set(self.row_keys) and isinstance(inputs["context"], list) else [inputs]
        return [_request_row(row) for row in (inputs if isinstance(inputs, list | tuple) else [inputs])]

    def ask_pipeline(self, pipeline: Any, rows: Sequence[Sequence[str]], *, max_length: int) -> list[Any]:
        inputs = [{"question": question, "context": context} for question, context in rows]
        found = pipeline(inputs, batch_size=len(inputs), max_seq_len=max_length)
        return found if isinstance(found, list) else [found]

    def pipeline_answers(self, answers: Arrays, **options: Any) -> list[Any]:
        """``{"score", "start", "end", "answer"}`` per row; a list of them, best first, where it is not one."""
        self.refuse_options(options)
        rows = [json.loads(row) for row in answers["ANSWERS"][:, 0]]
        return [row[0] if len(row) == 1 else row for row in rows]

    def pipeline_result(self, inputs: Any, answers: list[Any], options: Mapping[str, Any]) -> Any:  # noqa: ARG002
        """As the pipeline does it: a list of one row gives no list, a row of lists does."""
        lists = isinstance(inputs, dict) and isinstance(inputs["question"], list)
        several = isinstance(inputs, list | tuple) and len(inputs) != 1
        return answers if lists or several else answers[0]

    # -- training and judging --------------------------------------------------------------------------------------------------

    @property
    def metric(self) -> str:
        return "spans"

    @property
    def main_metric(self) -> str:
        return "f1"

    def head(self) -> dict[str, Any]:
        """Whether there may be no answer travels in the config: what is served then answers as what was judged."""
        own = {"handle_impossible_answer": True} if self.handle_impossible_answer else None
        return {"num_labels": 2, "task_specific_params": own and {self.name: own}}

    def targets(self, features: Features, references: Sequence[Any]) -> dict[str, list[Any]]:
        """Of several right answers the first. A window that does not hold it whole points at its first token."""
        owners = features.origins.owners.tolist()
        found = [_target(window, references[owner]) for window, owner in zip(features.encodings, owners, strict=True)]
        return {"start_positions": [start for start, _ in found], "end_positions": [end for _, end in found]}

    def predictions(self, answers: Arrays) -> list[Any]:
        return [answer.decode() for answer in answers["ANSWER"][:, 0]]

    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        same = (answers["START"] == original["START"]) & (answers["END"] == original["END"])
        return cast("npt.NDArray[np.float64]", same[:, 0].astype(np.float64))

    def ties(self, original: Arrays) -> npt.NDArray[np.bool_]:
        return original[MARGIN][:, 0] < CLOSE


# -- rows ----------------------------------------------------------------------------------------------------------------------


def _row(question: Any, context: Any) -> dict[str, Any]:
    return {"question": question, "context": context}


def _rows(question: Any, context: Any) -> Any:
    """Keyword arguments of the pipeline → its row, or rows.

    Raises:
        ValueError: lists of unlike lengths.
        TypeError: neither strings nor lists.
    """
    if isinstance(question, str) and isinstance(context, str):
        return _row(question, context)
    if not isinstance(question, list) or not isinstance(context, str | list):
        raise TypeError("question and context must both be strings or both lists, or questions a list and context a string")
    contexts = [context] * len(question) if isinstance(context, str) else context
    if len(contexts) != len(question):
        raise ValueError(f"there are {len(question)} questions and {len(contexts)} contexts")
    return [_row(*pair) for pair in zip(question, contexts, strict=True)]


def _request_row(row: Any) -> tuple[str, str]:
    found = (getattr(row, "question_text", None), getattr(row, "context_text", None))  # transformers' SquadExample
    if isinstance(row, dict) and set(row) == {"question", "context"}:
        found = (row["question"], row["context"])
    if isinstance(found[0], str) and isinstance(found[1], str):
        return found[0], found[1]
    raise TypeError(f"each row must be {{'question': …, 'context': …}} with two strings, not {row!r:.80}")


def _read_answers(label: Any) -> list[dict[str, Any]]:
    found = label
    try:
        if isinstance(label, str):
            found = json.loads(label)
        if isinstance(found, dict):  # as the Hub's data sets have them: lists side by side
            pairs = zip(found["text"], found["answer_start"], strict=True)
            found = [{"text": text, "answer_start": start} for text, start in pairs]
        answers = [{"text": answer["text"], "answer_start": answer["answer_start"]} for answer in found]
    except (ValueError, TypeError, KeyError):
        answers = [{}]
    if not all(map(_is_answer, answers)):
        raise ValueError("the answers are not [{text, answer_start}, …], nor {text: […], answer_start: […]}")
    return answers


def _is_answer(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"text", "answer_start"}:
        return False
    text, start = value["text"], value["answer_start"]
    return isinstance(text, str) and bool(text) and type(start) is int and start >= 0


def _target(window: Encoding, answers: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Positions of the first and the last token of the first of ``answers``; (0, 0) where the window does not hold all of it."""
    first, count = text_tokens(window)
    if not answers or not count:
        return 0, 0
    begin = answers[0]["answer_start"]
    end = begin + len(answers[0]["text"])
    offsets = np.array(window.offsets[first : first + count])
    if offsets[0, 0] > begin or offsets[-1, 1] < end:
        return 0, 0
    start, stop = np.flatnonzero(offsets[:, 0] <= begin)[-1], np.flatnonzero(offsets[:, 1] >= end)[0]
    return (int(first + start), int(first + stop)) if start <= stop else (0, 0)


def _fits(texts: Any, encoder: TextEncoder, stride: int, length: int) -> bool:
    try:
        encoder.windows([texts], stride=stride, max_length=length)
    except ValueError:
        return False
    return True


# -- answers -------------------------------------------------------------------------------------------------------------------


def _answer(score: float, start: int, end: int, text: str) -> dict[str, Any]:
    return {"score": score, "start": start, "end": end, "answer": text}


def _score(answer: Mapping[str, Any]) -> float:
    return cast(float, answer["score"])


def _merged(text: str, spans: Any) -> list[dict[str, Any]]:
    """Spans ``(start, end, score)`` of a text, window by window → its answers; equal ones are one."""
    found: dict[str, dict[str, Any]] = {}
    for start, end, score in spans:
        if score > 0:
            answer = text[start:end]
            known = found.setdefault(answer.lower(), _answer(0.0, start, end, answer))
            known["score"] += score
    return list(found.values())


def _tensors(found: Sequence[Sequence[dict[str, Any]]], top_k: int) -> Arrays:
    """Answers of each row, best first and at least one → tensors."""
    best = [row[0] for row in found]
    shown = [json.dumps(row[:top_k], ensure_ascii=False).encode() for row in found]
    margins = [row[0]["score"] - row[1]["score"] if len(row) > 1 else np.inf for row in found]
    return {
        "ANSWER": np.array([answer["answer"].encode() for answer in best], dtype=np.object_)[:, None],
        "SCORE": np.array([answer["score"] for answer in best], dtype=np.float32)[:, None],
        "START": np.array([answer["start"] for answer in best], dtype=np.int64)[:, None],
        "END": np.array([answer["end"] for answer in best], dtype=np.int64)[:, None],
        "ANSWERS": np.array(shown, dtype=np.object_)[:, None],
        MARGIN: np.array(margins, dtype=np.float32)[:, None],
    }


TASK = QuestionAnswering
