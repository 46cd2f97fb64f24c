"""Zero-shot classification: a text and candidate labels → the labels, best first, and their scores.

The model has learnt natural language inference (does the one text follow from the other?). Each label is put into a hypothesis
("This example is sports."), and how far that follows from the text is the label's score: every pair of a text and a label is
one row for the model.

As in ``transformers``' pipeline, with its quirks:

* Of several labels, scores are the softmax of their entailment logits; of a single one, or with ``multi_label``, each is the
  softmax of entailment against contradiction, neutral left out.
* Entailment is the first name in the config's ``label2id`` that starts with "entail", whatever the case; where there is none,
  the last logit. Contradiction is the first logit, whatever its name, but the last where entailment is the first.
* Equal scores: the label given last comes first.
* Only the text is cut where a pair is too long, never the hypothesis.

And not as there: an empty text is answered (the pipeline refuses it); a hypothesis that leaves no room for the text is refused
(the pipeline hands the model more than it takes); labels must be strings; a template holds ``{}`` or ``{0}`` once and nothing
else in braces (the pipeline formats whatever it is given), and :data:`LONGEST_TEMPLATE` characters at most.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from ._candidates import require_few, softmax_by_owner, starts_of
from ._strings import json_column, read_strings, write_strings
from .base import Arrays, Columns, Features, Option, Options, Origins, Task, Tensor, Text

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

    from ..tokenization import TextEncoder

LONGEST_TEMPLATE = 1000
"""Characters of a template: every label gets a copy."""
CLOSE = 1e-4
"""Two best scores nearer to each other than this are a close call."""
TRAINED_AS = "fine-tune with --task text-classification on pairs of texts, one label starting with 'entail'"


@dataclass(frozen=True, kw_only=True)
class ZeroShotClassification(Task):
    """Args:
    entailment: position of that logit.
    contradiction: position of that logit.
    hypothesis_template: how a label becomes a sentence.
    multi_label: several labels may be right: each is scored on its own.
    labels: those of the rows it was verified on, which are every such row's candidates; empty: not verified.
    """

    pair: bool = True
    entailment: int
    contradiction: int
    hypothesis_template: str = "This example is {}."
    multi_label: bool = False
    labels: tuple[str, ...] = ()

    name: ClassVar[str] = "zero-shot-classification"
    auto_model: ClassVar[str] = "AutoModelForSequenceClassification"
    optimum_task: ClassVar[str] = "text-classification"
    trained_as: ClassVar[str] = "text-classification"
    options: ClassVar[Mapping[str, Option]] = {
        **Task.options,
        "hypothesis_template": Option(str),
        "multi_label": Option(bool),
    }
    carries_notes: ClassVar[bool] = True
    fan_out: ClassVar[int] = 4
    text_keys: ClassVar[tuple[str, ...]] = ("text", "candidate_labels")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, pair: bool = True) -> Self:  # noqa: ARG003 - always of pairs
        id2label = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # what transformers assumes where none are given
        label2id = config.get("label2id") or {label: index for index, label in id2label.items()}
        named = [int(index) for label, index in label2id.items() if str(label).lower().startswith("entail")]
        entailment = named[0] if named else len(id2label) - 1
        if not 0 <= entailment < len(id2label):
            raise ValueError(f"its label2id says that entailment is logit {entailment}, and there are {len(id2label)}")
        contradiction = len(id2label) - 1 if named and entailment == 0 else 0
        return cls(entailment=entailment, contradiction=contradiction)

    @classmethod
    def from_labels(cls, labels: Sequence[Any], *, names: Sequence[str], pair: bool) -> Self:  # noqa: ARG003
        raise ValueError(f"nothing is trained for {cls.name} itself: {TRAINED_AS}")

    @classmethod
    def read_row(cls, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        if len(texts) != 1:
            raise ValueError(f"a row is one text and its label; here are {len(texts)} texts")
        if type(label) is int or (isinstance(label, str) and label):
            return texts, label
        raise ValueError(f"the label must be a name, not {label!r:.80}")

    def judged_by(self, labels: Sequence[Any], *, names: Sequence[str]) -> Self:
        """With the labels of those rows as every row's candidates."""
        found = tuple(names) or tuple(sorted(set(labels)))
        if not all(isinstance(label, str) for label in found):
            shown = ", ".join(map(str, found[:5]))
            raise ValueError(f"the labels are numbers ({shown}), which say nothing to a model that reads them: give their names")
        if len(found) < 2:
            raise ValueError(f"has one label only, {found[0]!r}: there is nothing to tell apart")
        return replace(self, labels=found)

    def reference(self, label: Any) -> Any:
        if label not in self.labels:
            raise ValueError(f"unknown label {label!r}, known are {', '.join(self.labels)}")
        return self.labels.index(label)

    def is_reference(self, value: Any) -> bool:
        return isinstance(value, int) and 0 <= value < len(self.labels)

    @property
    def text_columns(self) -> int:
        return 1

    def requests(self, columns: Columns) -> Columns:
        """Every row with all labels of the data set as its candidates."""
        return [columns[0], [write_strings(self.labels)] * len(columns[0])]

    def inputs(self) -> tuple[Tensor, ...]:
        return (Tensor("TEXT", "TYPE_STRING"), Tensor("CANDIDATE_LABELS", "TYPE_STRING"))

    def outputs(self) -> tuple[Tensor, ...]:
        return (Tensor("LABELS", "TYPE_STRING"), Tensor("SCORES", "TYPE_STRING"))

    @property
    def example(self) -> dict[str, str]:
        labels = ["film", "food", "sports"]
        return {"TEXT": "A warm, funny and thoroughly engaging film.", "CANDIDATE_LABELS": write_strings(labels)}

    def long_example(self, repeats: int) -> dict[str, str]:
        example = self.example
        return example | {"TEXT": " ".join([example["TEXT"]] * repeats)}

    def request_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        options = super().request_options(given)
        _around_label(options["hypothesis_template"])
        return options

    def texts(self, columns: Columns) -> Sequence[Text]:
        return self._pairs(columns, self.hypothesis_template)[0]

    def features(self, columns: Columns, encoder: TextEncoder, options: Options) -> Features:
        pairs, labels, owners = self._pairs(columns, options["hypothesis_template"], most=encoder.most_rows)
        encodings = encoder.encode(pairs, truncation=options["truncation"], strategy="only_first")
        return Features(encodings, Origins(owners, [label.encode() for label in labels]))

    @staticmethod
    def _pairs(columns: Columns, template: str, *, most: int | None = None) -> tuple[list[Text], list[str], npt.NDArray[np.int64]]:
        """Each text with each of its labels as a hypothesis; that label; and which row both are of.

        Raises:
            ValueError: a row has no such list, or more than ``most`` labels.
        """
        texts, lists = columns
        before, after = _around_label(template)
        read: dict[str, tuple[list[str], list[str]]] = {}  # rows mostly have the same candidates
        for given in lists:
            if given not in read:
                labels = read_strings(given, "CANDIDATE_LABELS")
                require_few(labels, "CANDIDATE_LABELS", most)
                read[given] = labels, [before + label + after for label in labels]
        pairs: list[Text] = [(text, hypothesis) for text, given in zip(texts, lists, strict=True) for hypothesis in read[given][1]]
        owners = np.repeat(np.arange(len(texts)), [len(read[given][0]) for given in lists])
        return pairs, [label for given in lists for label in read[given][0]], owners

    def answers(self, outputs: Arrays, origins: Origins, options: Options) -> Arrays:
        logits, owners = outputs["logits"], origins.owners
        starts = starts_of(owners)
        counts = np.diff(starts, append=len(owners))
        alone = np.full(len(owners), True) if options["multi_label"] else (counts == 1)[owners]
        against = logits[:, self.contradiction] - logits[:, self.entailment]
        with np.errstate(over="ignore"):  # 1 / (1 + inf) is the 0 that is meant
            own = 1 / (1 + np.exp(against))
        scores = np.where(alone, own, softmax_by_owner(logits[:, self.entailment], owners))
        labels, ranked, shares = origins.notes, [], []
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            row = scores[start : start + count]
            order = row.argsort()[::-1]
            ranked.append([labels[start + place].decode() for place in order.tolist()])
            shares.append(row[order].tolist())
        return {"LABELS": json_column(ranked), "SCORES": json_column(shares)}

    def call(self, arguments: tuple[Any, ...], given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """``pipe(sequences, candidate_labels)``, either by name too, or rows that name their labels themselves."""
        options = dict(given)
        names = ("sequences", "candidate_labels")
        found = dict(zip(names, arguments, strict=False))
        if len(arguments) > len(names) or found.keys() & options.keys():
            raise TypeError("give sequences and candidate_labels, each once")
        found |= {name: options.pop(name) for name in names if name in options}
        if "sequences" not in found:
            raise TypeError("give sequences and candidate_labels, each once")
        sequences = found["sequences"]
        if "candidate_labels" not in found:
            return sequences, options
        labels = found["candidate_labels"]
        if isinstance(sequences, list | tuple):
            return [_with_labels(row, labels) for row in sequences], options
        return _with_labels(sequences, labels), options

    def request_rows(self, inputs: Any) -> list[tuple[str, ...]]:
        return [self._request_row(row) for row in (inputs if isinstance(inputs, list | tuple) else [inputs])]

    @staticmethod
    def _request_row(row: Any) -> tuple[str, ...]:
        match row:
            case {"text": str(text), "candidate_labels": labels, **rest} if not rest:
                if isinstance(labels, str):
                    labels = [label.strip() for label in labels.split(",") if label.strip()]
                if not labels:
                    raise ValueError("one candidate label is needed at least")
                try:
                    return text, write_strings(labels)
                except TypeError as error:
                    raise TypeError(f"candidate_labels {error}, or a string of them with commas between") from None
        wanted = "a string (with candidate_labels=[…] beside it) or {'text': …, 'candidate_labels': […]}"
        raise TypeError(f"each row must be {wanted}, not {row!r:.80}")

    def ask_pipeline(self, pipeline: Any, rows: Sequence[Sequence[str]], *, max_length: int) -> list[Any]:  # noqa: ARG002
        """It takes one list of labels at a time, and cuts text at what the tokenizer says."""
        answers: list[Any] = [None] * len(rows)
        for labels in dict.fromkeys(labels for _, labels in rows):
            places = [place for place, row in enumerate(rows) if row[1] == labels]
            found = pipeline([rows[place][0] for place in places], json.loads(labels), batch_size=len(rows))
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        return answers

    def pipeline_answers(self, answers: Arrays, **options: Any) -> list[Any]:
        """``{"labels", "scores"}`` per row; :meth:`completed` puts the text before them."""
        self.refuse_options(options, "candidate_labels")
        rows = zip(answers["LABELS"][:, 0], answers["SCORES"][:, 0], strict=True)
        return [{"labels": json.loads(labels), "scores": json.loads(scores)} for labels, scores in rows]

    def completed(self, answers: list[Any], rows: Sequence[tuple[str, ...]]) -> list[Any]:
        """``{"sequence", "labels", "scores"}`` per row."""
        return [{"sequence": text} | answer for answer, (text, _) in zip(answers, rows, strict=True)]

    @property
    def metric(self) -> str:
        return "classification"

    @property
    def main_metric(self) -> str:
        return "accuracy"

    def head(self) -> dict[str, Any]:
        raise NotImplementedError(TRAINED_AS)

    def targets(self, features: Features, references: Sequence[Any]) -> dict[str, list[Any]]:
        raise NotImplementedError(TRAINED_AS)

    def predictions(self, answers: Arrays) -> list[Any]:
        places = {label: place for place, label in enumerate(self.labels)}
        return [places.get(json.loads(labels)[0], -1) for labels in answers["LABELS"][:, 0]]

    def confidence(self, answers: Arrays) -> npt.NDArray[np.float64] | None:
        return None if self.multi_label else np.array([json.loads(scores)[0] for scores in answers["SCORES"][:, 0]])

    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """1 where the best label is the same."""
        pairs = zip(answers["LABELS"][:, 0], original["LABELS"][:, 0], strict=True)
        return np.array([json.loads(ours)[0] == json.loads(theirs)[0] for ours, theirs in pairs], dtype=np.float64)

    def ties(self, original: Arrays) -> npt.NDArray[np.bool_]:
        rows = [json.loads(scores) for scores in original["SCORES"][:, 0]]
        return np.array([len(row) > 1 and row[0] - row[1] < CLOSE for row in rows], dtype=np.bool_)


def _with_labels(row: Any, labels: Any) -> dict[str, Any]:
    if isinstance(row, Mapping):
        if "candidate_labels" in row:
            raise TypeError(f"candidate_labels are given twice, in the row and beside it: {row!r:.80}")
        return {**row, "candidate_labels": labels}
    return {"text": row, "candidate_labels": labels}


def _around_label(template: str) -> tuple[str, str]:
    """What stands before the label and after it. Not with ``str.format`` itself: a template comes from a client, and could read
    attributes, or ask for a million spaces or labels.

    Raises:
        ValueError: there is no place for it or more than one, there is another field, or it is too long.
    """
    if len(template) > LONGEST_TEMPLATE:
        raise ValueError(f"hypothesis_template has {len(template)} characters, at most {LONGEST_TEMPLATE} are taken")
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"hypothesis_template {template[:80]!r} cannot be read: {error}") from None
    fields = [(place, part[1:]) for place, part in enumerate(parts) if part[1] is not None]
    if len(fields) != 1 or fields[0][1] not in (("", "", None), ("0", "", None)):
        raise ValueError(
            f"hypothesis_template must contain {{}} where the label goes, once, and no other braces: {template[:80]!r}"
        )
    literals = [part[0] for part in parts]
    end = fields[0][0] + 1
    return "".join(literals[:end]), "".join(literals[end:])


TASK = ZeroShotClassification
