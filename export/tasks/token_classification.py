"""Token classification: labels of words, such as named entities or parts of speech."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self, cast

import numpy as np

from export.tasks._encoder import ExportedEncoderTask
from export.tasks._tagging import TaggedWords, first_tokens, read_list, tagged_text
from export.tasks.base import IGNORED, Label, Prediction, Reference, config_labels, label_head
from export.tasks.trained import Baseline, TrainedTask
from serving.runtime.tasks._labels import OUTSIDE
from serving.runtime.tasks._tokens import Entity
from serving.runtime.tasks.token_classification import TokenClassification
from serving.runtime.types import Arrays, Features, Flags, JsonValue

if TYPE_CHECKING:
    import numpy.typing as npt
    from tokenizers import Encoding
    from transformers import Pipeline, PreTrainedTokenizerFast

CLOSE = 1e-4
"""Two labels of a token by different models count as tied if their scores differ by less."""


@dataclass(frozen=True, kw_only=True)
class TokenClassificationTask(ExportedEncoderTask[TokenClassification], TrainedTask):
    """Trains and evaluates token classification."""

    name: ClassVar[str] = TokenClassification.name
    auto_model: ClassVar[str] = "AutoModelForTokenClassification"
    truncating_options: ClassVar[Mapping[str, object]] = {}
    served_class: ClassVar[type[TokenClassification]] = TokenClassification
    token_level: ClassVar[bool] = TokenClassification.token_level
    metric_note: ClassVar[str] = (
        "f1, precision and recall: whole entities of all kinds together (micro average); f1_macro: mean over the kinds"
    )
    reads_words: ClassVar[bool] = TokenClassification.reads_words
    columns: ClassVar[Mapping[str, str | None]] = {**TokenClassification.columns, "label": "ner"}
    pipeline_options: ClassVar[Mapping[str, object]] = {"aggregation_strategy": "none", "ignore_labels": []}

    @property
    def evaluation_options(self) -> Mapping[str, JsonValue]:
        """Return the request parameters that give the label of every token."""
        return {"aggregation_strategy": "none", "ignore_labels": "[]"}

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the label names in the order of the logits."""
        return tuple(map(str, self.served.labels))

    @classmethod
    def from_config(cls, config: Mapping[str, object], *, pair: bool = False) -> Self:
        """Take the labels of the config."""
        _refuse_pairs(pair)
        return cls(served=TokenClassification(labels=config_labels(config)))

    @classmethod
    def from_labels(cls, labels: Sequence[Label], *, names: Sequence[str], pair: bool) -> Self:
        """Order the labels as the data set does, otherwise ``O`` first, then by kind, ``B-`` before ``I-``.

        A kind that has ``B-`` gets ``I-`` too: in a small training set it is chance whether its words come in groups.
        """
        _refuse_pairs(pair)
        found = {label for row in cast("Sequence[TaggedWords]", labels) for label in row["label"]}
        if len(found) < 2:
            only = f"one label only, {next(iter(found))!r}" if found else "no label at all"
            raise ValueError(f"has {only}: there is nothing to tell apart")
        kinds = {type(label) for label in found}
        if len(kinds) > 1:
            raise ValueError("has labels of which some are names and some numbers")
        if names:
            return cls(served=TokenClassification(labels=tuple(names)))
        if kinds == {int}:
            return cls(served=TokenClassification(labels=tuple(map(str, sorted(found)))))
        known = {str(label) for label in found}
        known |= {f"I-{label[2:]}" for label in known if label.startswith("B-")}
        ordered = sorted(known, key=lambda label: (label != OUTSIDE, label.split("-", 1)[-1], label))
        return cls(served=TokenClassification(labels=tuple(ordered)))

    @classmethod
    def read_row(cls, texts: tuple[object, ...], label: object) -> tuple[tuple[object, ...], Label]:
        """Read a list of words and as many labels, or a text and its entities ``{"start", "end", "label"}`` in characters.

        Where a file has no lists, both are JSON. Words are served with single spaces between them.

        Returns:
            The text, and its :class:`TaggedWords`.
        """
        labels = read_list(label)
        if labels is None:
            raise ValueError(
                "the label is neither a list of names or whole numbers nor a list of entities with start, end and label"
            )
        words = read_list(texts[0])
        if words is None:
            return (texts[0],), cast(Label, tagged_text(texts[0], labels))
        if not all(isinstance(word, str) for word in words):
            raise ValueError("some of the words are not text")
        if not all(type(one) in (str, int) for one in labels):
            raise ValueError("the labels must be all names or all whole numbers")
        if len(words) != len(labels):
            raise ValueError(f"there are {len(words)} words and {len(labels)} labels")
        parts = cast("list[str]", words)
        ends = (np.cumsum([len(word) + 1 for word in parts], dtype=np.int64) - 1).tolist()
        starts = [end - len(word) for word, end in zip(parts, ends, strict=True)]
        return (" ".join(parts),), cast(Label, {"start": starts, "end": ends, "label": labels})

    def reference(self, label: Label) -> Reference:
        """Return the words with the names of their labels."""
        words = cast(TaggedWords, label)
        return cast(Reference, {**words, "label": [self._name(one) for one in words["label"]]})

    def _name(self, label: str | int) -> str:
        """Find a label's name. A whole number that is not a name is a position: data sets commonly hold those."""
        if isinstance(label, str) and label in self._positions:
            return label
        if isinstance(label, int) and str(label) in self._positions:
            return str(label)
        if isinstance(label, int) and 0 <= label < len(self.labels):
            return self.labels[label]
        raise ValueError(f"unknown label {label!r}, known labels: {', '.join(self.labels)}")

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {label: index for index, label in reversed([*enumerate(self.labels)])}

    def is_reference(self, value: object) -> bool:
        """Accept words with places and known labels."""
        if not isinstance(value, dict) or set(value) != {"start", "end", "label"}:
            return False
        lists = list(value.values())
        if not all(isinstance(one, list) for one in lists) or len(set(map(len, lists))) != 1:
            return False
        return all(isinstance(place, int) for place in (*value["start"], *value["end"])) and set(value["label"]) <= set(self.labels)

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Take the tokenizer's decoder, which spells words, and its unknown token."""
        decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
        served = replace(self.served, decoder=json.dumps(decoder) if decoder else "", unknown=tokenizer.unk_token_id)
        return replace(self, served=served)

    # -- training and evaluation ----------------------------------------------------------------------------------------------

    @property
    def metric(self) -> str:
        """Return the metric of CoNLL."""
        return "entities"

    @property
    def default_metric(self) -> str:
        """Return F1; the share of right words where no label means "no entity", as for parts of speech."""
        return "f1" if OUTSIDE in self.labels else "word_accuracy"

    @property
    def selectable_metrics(self) -> tuple[str, ...]:
        """Return the figures of entities, and that of words."""
        return ("f1", "precision", "recall", "f1_macro", "word_accuracy")

    def baseline(self, training: Sequence[Reference], evaluated: Sequence[Reference]) -> Baseline:
        """Predict the most frequent label of the training words for every word."""
        rows = cast("Sequence[TaggedWords]", training)
        (label, _), *_ = Counter(str(label) for row in rows for label in row["label"]).most_common(1)
        words = cast("Sequence[TaggedWords]", evaluated)
        predictions = [{"start": row["start"], "end": row["end"], "label": [label] * len(row["label"])} for row in words]
        return Baseline(
            f"{label} for every word, the most frequent label of the training rows", cast("list[Prediction]", predictions)
        )

    def head(self) -> dict[str, object]:
        """Return the labels."""
        return label_head(self.labels)

    def targets(self, features: Features, references: Sequence[Reference]) -> dict[str, list[JsonValue]]:
        """Put a word's label at its first token; the other tokens are :data:`IGNORED`."""
        words = cast("Sequence[TaggedWords]", references)
        mapping = features.origins.sample_mapping.tolist()
        return {
            "labels": [self._row_targets(encoding, words[row]) for encoding, row in zip(features.encodings, mapping, strict=True)]
        }

    def _row_targets(self, encoding: Encoding, words: TaggedWords) -> list[int]:
        targets = np.full(len(encoding), IGNORED, dtype=np.int64)
        text = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
        starts, ends = np.array(encoding.offsets, dtype=np.int64)[text].T
        firsts = first_tokens(starts, ends, cast("Mapping[str, list[object]]", words))
        seen = firsts >= 0
        positions = np.array([self._positions[str(label)] for label in words["label"]], dtype=np.int64)
        targets[text[firsts[seen]]] = positions[seen]
        return targets.tolist()

    def predictions(self, answers: Arrays) -> list[Prediction]:
        """Return the tokens of each row in order: lists of ``start``, ``end`` and ``label``."""
        rows = [json.loads(row) for row in answers["ENTITIES"][:, 0]]
        return [
            {
                "start": [item["start"] for item in row],
                "end": [item["end"] for item in row],
                "label": [_label(item) for item in row],
            }
            for row in rows
        ]

    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """Compute the share of equally labelled tokens among those that either side says belong to an entity; 1 where none do.

        With all tokens counted, the many that belong to no entity would hide the differences.
        """
        return np.array([_shared(row) for row in _labelled_rows(answers, original)], dtype=np.float64)

    def near_ties(self, answers: Arrays, original: Arrays) -> int:
        """Count the tokens that have two labels of equal score."""
        return sum(_is_tied(one, other) for row in _labelled_rows(answers, original) for one, other in row)

    def row_agreement(self, answers: Arrays, original: Arrays) -> Flags:
        """Compare the entities of each row: label and place. Tied tokens count as equal here too."""
        pairs = zip(answers["ENTITIES"][:, 0], original["ENTITIES"][:, 0], strict=True)
        alike = self.agreement(answers, original) == 1
        if self.served.aggregation_strategy not in (None, "simple"):  # by words, which tokens do not tell
            return cast("Flags", alike)
        return np.array([same or _entities(ours) == _entities(theirs) for same, (ours, theirs) in zip(alike, pairs, strict=True)])

    def score_changes(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """Return the changes of the tokens that both sides label alike, as a part of an entity."""
        rows = _labelled_rows(answers, original)
        return np.array([abs(one[1] - other[1]) for row in rows for one, other in row if one[0] == other[0]], dtype=np.float64)

    def ties(self, original: Arrays) -> Flags:
        """Return no ties, because :meth:`agreement` already counts tied tokens as equal."""
        return np.zeros(len(original["ENTITIES"]), dtype=np.bool_)

    def ask_pipeline(self, pipeline: Pipeline, rows: Sequence[Sequence[str]], *, max_length: int) -> list[object]:  # noqa: ARG002
        """Ask without a length: the pipeline truncates at the tokenizer's and takes no other."""
        found: list[object] = pipeline([text for (text,) in rows], batch_size=len(rows), **self.pipeline_options)
        return found


def _refuse_pairs(pair: bool) -> None:
    if pair:
        raise ValueError("token-classification takes single texts, not pairs")


def _label(item: Entity) -> str:
    return str(item["entity"]) if "entity" in item else item["entity_group"]


Place = tuple[int | None, int, int]


def _by_place(row: bytes) -> dict[Place, tuple[str, float]]:
    """Index label and score by place."""
    return {(item.get("index"), item["start"], item["end"]): (_label(item), item["score"]) for item in json.loads(row)}


Labelled = tuple[str, float]
"""Label and score of a token."""


def _labelled_rows(answers: Arrays, original: Arrays) -> list[list[tuple[Labelled, Labelled]]]:
    """Return, for each row, the tokens that one side says belong to an entity, as both sides label them."""
    pairs = zip(answers["ENTITIES"][:, 0], original["ENTITIES"][:, 0], strict=True)
    return [_labelled_tokens(_by_place(ours), _by_place(theirs)) for ours, theirs in pairs]


def _labelled_tokens(ours: dict[Place, Labelled], theirs: dict[Place, Labelled]) -> list[tuple[Labelled, Labelled]]:
    outside = (OUTSIDE, 0.0)
    pairs = [(ours.get(place, outside), theirs.get(place, outside)) for place in ours.keys() | theirs.keys()]
    return [(one, other) for one, other in pairs if (one[0], other[0]) != (OUTSIDE, OUTSIDE)]


def _is_tied(one: Labelled, other: Labelled) -> bool:
    """Return whether two labels differ because their scores are tied: each then has half of the probability at most."""
    return one[0] != other[0] and abs(one[1] - other[1]) < CLOSE and max(one[1], other[1]) <= 0.5 + CLOSE


def _shared(labelled: Sequence[tuple[Labelled, Labelled]]) -> float:
    same = sum(one[0] == other[0] or _is_tied(one, other) for one, other in labelled)
    return same / len(labelled) if labelled else 1.0


def _entities(row: bytes) -> list[tuple[str, int, int]]:
    """Join the tokens of a row to entities, as ``aggregation_strategy`` ``simple`` does: name, start and end."""
    found: list[tuple[str, int, int]] = []
    before: str | None = None
    for item in json.loads(row):
        label = _label(item)
        kind = re.sub("^[BI]-", "", label)
        if kind == before and not label.startswith("B-"):
            found[-1] = (*found[-1][:2], item["end"])
        else:
            found.append((label.split("-", 1)[-1], item["start"], item["end"]))
        before = kind
    return [entity for entity in found if entity[0] != OUTSIDE]


TASK = TokenClassificationTask
