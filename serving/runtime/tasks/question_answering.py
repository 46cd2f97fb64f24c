"""Question answering: a question and a text → the part of the text that answers the question.

The answers are those of the ``QuestionAnsweringPipeline`` of ``transformers`` 4.57 with a fast tokenizer, including these rules:

* ``max_question_len`` has no effect: only slow tokenizers truncate questions. A question that leaves no room in a window is
  refused.
* Answers of equal text, whatever their case and place, are one answer: it stands where the first was found, and its score is
  their sum. So overlapping windows count twice, and a score may be above 1.
* ``align_to_words`` widens an answer to whole words as the tokenizer splits them, which in languages without spaces may be much.
* With a tokenizer that pads on the left, such as XLNet's, the text stands in front of the question. Words of the question may then
  be taken for an answer: of the text, what stands at their place.

Differences: the pipeline fills up to ``top_k`` with spans of probability 0 (which ones depends on the version of numpy); here
they are left out. A special token that opens a row counts as its ``[CLS]`` (OPT's is not meant as one).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, TypedDict, cast

import numpy as np

from ..types import Arrays, Features, JsonValue, Origins, Setting, Tensor, TextColumns, TextTooLongError, TooManyRowsError
from ._encoder import EncoderTask
from ._spans import Windows, best_spans, metadata_of, probabilities
from ._tokenizer_options import check_padding

if TYPE_CHECKING:
    from ..tokenization import TextEncoder

WINDOW, OVERLAP = 384, 128
"""Maximum tokens of a window, and of its overlap with the one before, where a request does not set them."""
MOST_ANSWERS = 1000
"""The largest ``top_k``."""


class Answer(TypedDict):
    """One answer to a question, as the pipeline gives it."""

    score: float
    start: int
    end: int
    answer: str


@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(EncoderTask):
    """Serves extractive question answering.

    Attributes:
        top_k: Number of answers.
        doc_stride: Tokens that two neighbouring windows share. None: half a window, at most 128.
        max_answer_len: Maximum tokens of an answer.
        max_seq_len: Tokens of a window. None: 384, or what the model accepts if that is less.
        max_question_len: Has no effect, see above.
        handle_impossible_answer: Allow "no answer" (an empty one).
        align_to_words: Widen answers to whole words.
        text_first: Whether the text stands in front of the question, as for a tokenizer that pads on the left.
        pad_token_id: Id of the padding token. -1: none.
    """

    pair: bool = True
    top_k: int = 1
    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int | None = None
    max_question_len: int = 64
    handle_impossible_answer: bool = False
    align_to_words: bool = True
    text_first: bool = False
    pad_token_id: int = -1

    name: ClassVar[str] = "question-answering"
    model_outputs: ClassVar[tuple[str, ...]] = ("start_logits", "end_logits")
    token_level: ClassVar[bool] = True
    carries_metadata: ClassVar[bool] = True
    fan_out: ClassVar[int] = 4
    text_keys: ClassVar[tuple[str, ...]] = ("question", "context")
    positional: ClassVar[tuple[str, ...]] = ("data",)
    lists_iterables: ClassVar[bool] = True
    client_options: ClassVar[tuple[str, ...]] = ("padding",)
    ignores_unknown_options: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, str | None]] = {"text": "question", "text_pair": "context"}
    options: ClassVar[Mapping[str, Setting]] = {
        "top_k": Setting(int, minimum=1, maximum=MOST_ANSWERS, help="Number of answers."),
        "doc_stride": Setting(int, minimum=0, help="Tokens that two neighbouring windows share."),
        "max_answer_len": Setting(int, minimum=1, help="Maximum tokens of an answer."),
        "max_seq_len": Setting(int, minimum=1, help="Tokens of a window."),
        "max_question_len": Setting(int, minimum=1, help="Has no effect."),
        "handle_impossible_answer": Setting(bool, help="Allow an empty answer."),
        "align_to_words": Setting(bool, help="Widen answers to whole words."),
    }

    def inputs(self) -> tuple[Tensor, ...]:
        """Return ``QUESTION`` and ``CONTEXT``."""
        return Tensor("QUESTION", "TYPE_STRING"), Tensor("CONTEXT", "TYPE_STRING")

    def outputs(self) -> tuple[Tensor, ...]:
        """Return the best answer, and in ``ANSWERS`` a JSON list of the ``top_k`` best, each as the pipeline gives it."""
        return (
            Tensor("ANSWER", "TYPE_STRING"),
            Tensor("SCORE", "TYPE_FP32"),
            Tensor("START", "TYPE_INT64"),
            Tensor("END", "TYPE_INT64"),
            Tensor("ANSWERS", "TYPE_STRING"),
        )

    @property
    def example(self) -> dict[str, str]:
        """Return the question of the documentation of ``transformers``."""
        return {"QUESTION": "Where do I live?", "CONTEXT": "My name is Wolfgang and I live in Berlin."}

    def long_example(self, repeats: int) -> dict[str, str]:
        """Repeat the text alone, until it fills one window: a text may become any number of them."""
        text = self.example["CONTEXT"]
        return self.example | {"CONTEXT": " ".join([text] * (1 + repeats // len(text.split())))}

    def preprocess(self, columns: TextColumns, encoder: TextEncoder) -> Features:
        """Split each text into overlapping windows, each with the question."""
        length = self.max_seq_len or min(WINDOW, encoder.max_length)
        stride = min(length // 2, OVERLAP) if self.doc_stride is None else self.doc_stride
        if length > encoder.max_length:
            raise ValueError(f"max_seq_len is {length}, and the model takes {encoder.max_length} tokens at most")
        if stride > length:
            raise ValueError(f"doc_stride ({stride}) is larger than max_seq_len ({length})")
        rows: list[tuple[str, str]] = list(zip(*(columns[::-1] if self.text_first else columns), strict=True))
        strategy = "only_first" if self.text_first else "only_second"
        split = partial(encoder.windows, stride=stride, max_length=length, strategy=strategy)
        try:
            encodings, mapping = split(rows)
        except (TooManyRowsError, TextTooLongError):
            raise
        except ValueError:
            row = next(row for row, texts in enumerate(rows) if not _fits(texts, split))
            raise ValueError(
                f"row {row}: a window of {length} tokens has no room for the question, {stride} tokens of overlap (doc_stride) and "
                f"some of the text: {columns[0][row]!r:.80}"
            ) from None
        metadata = metadata_of(
            encodings,
            mapping,
            columns[1],
            words=self.align_to_words,
            text_first=self.text_first,
            pad_token_id=self.pad_token_id,
        )
        return Features(encodings, Origins(mapping, metadata), windows=True)

    def postprocess(self, outputs: Arrays, origins: Origins) -> Arrays:
        """Find the best answers of each row."""
        return self.tensors(self.find_answers(outputs, origins))

    def tensors(self, found: Sequence[Sequence[Answer]]) -> Arrays:
        """Write the answers of each row, best first and at least one, as the tensors of :meth:`outputs`."""
        best = [row[0] for row in found]
        shown = [json.dumps(row[: self.top_k], ensure_ascii=False).encode() for row in found]
        return {
            "ANSWER": np.array([answer["answer"].encode() for answer in best], dtype=np.object_)[:, None],
            "SCORE": np.array([answer["score"] for answer in best], dtype=np.float32)[:, None],
            "START": np.array([answer["start"] for answer in best], dtype=np.int64)[:, None],
            "END": np.array([answer["end"] for answer in best], dtype=np.int64)[:, None],
            "ANSWERS": np.array(shown, dtype=np.object_)[:, None],
        }

    def find_answers(self, outputs: Arrays, origins: Origins) -> list[list[Answer]]:
        """Find the answers of each request row, best first. There is at least one, perhaps an empty one."""
        windows = Windows.read(origins.metadata, outputs["start_logits"].shape[1])
        start = probabilities(outputs["start_logits"], windows)
        end = probabilities(outputs["end_logits"], windows)
        none = (start[:, 0] * end[:, 0]).tolist()
        start[:, 0] = end[:, 0] = 0.0
        # aligned to words, some spans become one, so the pipeline looks at more spans than it returns
        count = self.top_k * 2 + 10 if self.align_to_words else self.top_k
        begins, ends, scores = windows.places(*best_spans(start, end, count, self.max_answer_len))
        bounds = np.searchsorted(origins.sample_mapping, np.arange(origins.count + 1)).tolist()
        found = []
        for first, last in itertools.pairwise(bounds):
            spans = zip(*(part[first:last].ravel().tolist() for part in (begins, ends, scores)), strict=True)
            row = _merged(windows.texts[first].decode(), spans)
            if self.handle_impossible_answer:
                row.append(Answer(score=min(none[first:last]), start=0, end=0, answer=""))
            row.sort(key=lambda answer: answer["score"], reverse=True)
            found.append(row or [Answer(score=0.0, start=0, end=0, answer="")])
        return found

    # -- the client -----------------------------------------------------------------------------------------------------------

    def parse_call(self, arguments: tuple[object, ...], given: Mapping[str, object]) -> tuple[object, dict[str, object]]:
        """Take ``question=…, context=…`` (strings, lists, or questions and one text), both by position, or rows.

        ``X=…`` and ``data=…`` are older names of rows. The pipeline looks for its inputs in this order, and ignores the others.
        """
        options = dict(given)
        named = {name: options.pop(name) for name in ("X", "data", "question", "context") if name in options}
        if len(arguments) == 2 and all(isinstance(argument, str) for argument in arguments):
            return _row(*arguments), options
        if arguments:
            inputs = arguments[0] if len(arguments) == 1 else list(arguments)
        elif "X" in named or "data" in named:
            inputs = named["X"] if "X" in named else named["data"]
        elif len(named) < 2:
            raise ValueError("give question=… and context=…")
        else:
            inputs = _rows(named["question"], named["context"])
        if isinstance(inputs, Iterable) and not isinstance(inputs, str | dict | list | tuple):
            inputs = list(inputs)
        return inputs, options

    def check_rows(self, rows: Sequence[tuple[str, ...]]) -> None:
        """Refuse empty questions and texts, as the pipeline does."""
        for row in rows:
            if not all(row):
                raise ValueError(f"`{self.row_keys[row.index('')]}` cannot be empty")

    def parse_items(self, items: object) -> list[tuple[str, ...]]:
        """Take dicts with more keys, and empty questions and texts: the pipeline does not look at items as it looks at a list."""
        return self.parse_inputs([_without_others(item, self.row_keys) for item in cast("Sequence[object]", items)])

    def parse_inputs(self, inputs: object) -> list[tuple[str, ...]]:
        """Take dicts with ``question`` and ``context``, a dict of lists, or ``SquadExample`` objects."""
        if isinstance(inputs, dict) and isinstance(inputs.get("question"), list):
            inputs = _rows(**inputs) if set(inputs) == set(self.row_keys) and isinstance(inputs["context"], list) else [inputs]
        return [_parse_row(row) for row in (inputs if isinstance(inputs, list | tuple) else [inputs])]

    def sanitize_parameters(self, given: Mapping[str, object]) -> tuple[dict[str, JsonValue], dict[str, object]]:
        """Take ``topk``, the older name of ``top_k``. Padding changes no answer: what it adds is not looked at."""
        check_padding(given.get("padding"))
        options = dict(given)
        topk = options.pop("topk", None)
        if options.get("top_k") is None and topk is not None:
            options["top_k"] = topk
        return super().sanitize_parameters(options)

    def format_answers(self, answers: Arrays, **options: object) -> Sequence[object]:  # noqa: ARG002
        """Return ``{"score", "start", "end", "answer"}`` per row, or a list of them, best first, where there are several."""
        rows = [json.loads(row) for row in answers["ANSWERS"][:, 0]]
        return [row[0] if len(row) == 1 else row for row in rows]

    def format_result(self, inputs: object, answers: Sequence[object], options: Mapping[str, object]) -> object:  # noqa: ARG002
        """Return no list for a list of one row, and a list for a row of lists, as the pipeline does."""
        lists = isinstance(inputs, dict) and isinstance(inputs["question"], list)
        several = isinstance(inputs, list | tuple) and len(inputs) != 1
        return answers if lists or several else answers[0]


def _without_others(row: object, keys: Sequence[str]) -> object:
    """Return a dict without other keys, if it has these."""
    return {key: row[key] for key in keys} if isinstance(row, Mapping) and row.keys() >= set(keys) else row


def _row(question: object, context: object) -> dict[str, object]:
    return {"question": question, "context": context}


def _rows(question: object, context: object) -> object:
    """Convert keyword arguments of the pipeline to its row, or rows.

    Raises:
        ValueError: The lists have different lengths, or they are neither strings nor lists.
    """
    if isinstance(question, str) and isinstance(context, str):
        return _row(question, context)
    if not isinstance(question, list) or not isinstance(context, str | list):
        raise ValueError("question and context must both be strings or both lists, or questions a list and context a string")
    contexts = [context] * len(question) if isinstance(context, str) else context
    if len(contexts) != len(question):
        raise ValueError(f"there are {len(question)} questions and {len(contexts)} contexts")
    return [_row(*pair) for pair in zip(question, contexts, strict=True)]


def _parse_row(row: object) -> tuple[str, str]:
    """Return the texts of a row of the pipeline.

    Raises:
        KeyError: A key is missing.
        TypeError: There is another key.
        ValueError: It has another form.
    """
    if isinstance(row, dict):
        if missing := [name for name in ("question", "context") if name not in row]:
            raise KeyError(f"a row needs the keys question and context, {missing[0]} is missing: {row!r:.80}")
        if other := row.keys() - {"question", "context"}:
            raise TypeError(f"a row has the keys question and context, not {', '.join(map(repr, other))}: {row!r:.80}")
        found = (row["question"], row["context"])
    else:
        found = (getattr(row, "question_text", None), getattr(row, "context_text", None))  # the SquadExample of transformers
    if isinstance(found[0], str) and isinstance(found[1], str):
        return found[0], found[1]
    raise ValueError(f"each row must be {{'question': …, 'context': …}} with two strings, not {row!r:.80}")


def _fits(texts: tuple[str, str], split: Callable[[list[tuple[str, str]]], object]) -> bool:
    try:
        split([texts])
    except ValueError:
        return False
    return True


def _merged(text: str, spans: Iterable[tuple[int, int, float]]) -> list[Answer]:
    """Merge spans ``(start, end, score)`` of a text, window by window, into answers. Answers of equal text are one."""
    found: dict[str, Answer] = {}
    for start, end, score in spans:
        if score > 0:
            answer = text[start:end]
            known = found.setdefault(answer.lower(), Answer(score=0.0, start=start, end=end, answer=answer))
            known["score"] += score
    return list(found.values())


TASK = QuestionAnswering
