"""Token classification: a text → its entities, each with label, score and place. Named entities, parts of speech, anything that
labels words.

The answers are those of ``transformers.pipeline("token-classification")``, its quirks included:

* What is a word is the tokenizer's to say only where it marks continuations (``##ing``): a token is then taken to continue the
  one before if its spelling is as long as no stretch of text it stands for, so an accent that lower-casing removes makes a
  continuation too. All other tokenizers (RoBERTa's, SentencePiece) get words cut at spaces, punctuation and all.
* ``word`` is what the tokenizer's decoder makes of the tokens, seldom the text itself: that is ``text[start:end]``. Of some
  tokenizers ``start`` lies on the space before the word.
* An entity ends where the next one begins with ``B-`` or is of another kind; labels without ``B-`` or ``I-`` are all ``I-``. Its
  name is what follows the first ``-`` of its first label, whatever precedes that.
* ``stride`` reads long text in overlapping windows (else it is cut), each labelled by itself. Of entities that overlap the longest
  stays, of equally long ones the surest; an entity cut by the end of a window may so stay beside its other half.

Requests that ask for nothing get entities (``aggregation_strategy`` ``simple``), as the contract of the ensemble says. The client
asks for ``none`` then, single tokens, as the pipeline does. One thing differs: the pipeline takes ``stride`` without any strategy
and refuses it with an explicit ``none``; so does the client, but the server cannot tell one from the other and takes both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from ._labels import IGNORED, label_names, softmax
from ._strings import read_option
from ._tagged import OUTSIDE, read_list, tagged_text
from ._tokens import LABELLED_BY, NUMBERS, Entity, Flags, Integers, Tokens, Vocabulary, first_tokens, without_overlaps
from .base import Arrays, Columns, Features, Option, Options, Origins, Task, Tensor

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

    from tokenizers import Encoding

    from ..tokenization import TextEncoder


STRATEGIES = ("none", "simple", "first", "average", "max")
CLOSE = 1e-4
"""Where two models label a token differently with scores nearer to each other than this, it is a close call."""
NOT_TAKEN = ("is_split_into_words", "delimiter", "offset_mapping")
"""Options of the pipeline for texts that are split into words already."""


@dataclass(frozen=True, kw_only=True)
class TokenClassification(Task):
    """Args:
    labels: label names in the order of the logits.
    aggregation_strategy: how tokens become entities, one of :data:`STRATEGIES`.
    ignore_labels: labels (of entities: kinds) that are left out of answers: a JSON list, or names with commas between.
    stride: tokens that windows of a long text have in common; None: what is too long is cut.
    decoder: the tokenizer's decoder as ``tokenizer.json`` has it: it spells words. Empty: tokens with spaces between.
    unknown: id of the token that stands for what the vocabulary lacks; an answer shows the text itself there.
    """

    labels: tuple[str, ...]
    aggregation_strategy: str = "simple"
    ignore_labels: str = OUTSIDE
    stride: int | None = None
    decoder: str = ""
    unknown: int | None = None

    name: ClassVar[str] = "token-classification"
    auto_model: ClassVar[str] = "AutoModelForTokenClassification"
    options: ClassVar[Mapping[str, Option]] = {
        **Task.options,
        "aggregation_strategy": Option(str, choices=STRATEGIES),
        "ignore_labels": Option(str),
        "stride": Option(int, minimum=0),
    }
    judged_options: ClassVar[Mapping[str, Any]] = {"aggregation_strategy": "none", "ignore_labels": "[]"}
    token_level: ClassVar[bool] = True
    carries_notes: ClassVar[bool] = True
    fan_out: ClassVar[int] = 4
    columns: ClassVar[Mapping[str, str | None]] = {"text": "tokens", "text_pair": None, "label": "ner"}

    # -- from checkpoints and data ---------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, pair: bool = False) -> Self:
        _refuse_pairs(pair)
        labels = label_names(config)
        return cls(labels=labels)

    @classmethod
    def from_labels(cls, labels: Sequence[Any], *, names: Sequence[str], pair: bool) -> Self:
        """Label names as the data set orders them; else ``O``, then kind by kind, ``B-`` before ``I-``. A kind that has ``B-`` gets
        ``I-`` too: whether its words come in groups is chance in a small training set."""
        _refuse_pairs(pair)
        found = {label for row in labels for label in row["label"]}
        if len(found) < 2:
            only = f"one label only, {next(iter(found))!r}" if found else "no label at all"
            raise ValueError(f"has {only}: there is nothing to tell apart")
        kinds = {type(label) for label in found}
        if len(kinds) > 1:
            raise ValueError("has labels of which some are names and some numbers")
        if names:
            return cls(labels=tuple(names))
        if kinds == {int}:
            return cls(labels=tuple(map(str, sorted(found))))
        found |= {f"I-{label[2:]}" for label in found if label.startswith("B-")}
        return cls(labels=tuple(sorted(found, key=lambda label: (label != OUTSIDE, label.split("-", 1)[-1], label))))

    @classmethod
    def read_row(cls, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        """Two forms of row: a list of words and a list of as many labels; or a text and a list of its entities, ``{"start", "end",
        "label"}`` in characters. Where a file has no lists, both are JSON. Words are served with single spaces between.

        Returns:
            The text, and ``{"start", "end", "label"}``: a list each, of words in order.
        """
        labels = read_list(label)
        if labels is None:
            raise ValueError("the label is no list of names or whole numbers, and no list of entities with start, end and label")
        words = read_list(texts[0])
        if words is None:
            return (texts[0],), tagged_text(texts[0], labels)
        if not all(isinstance(word, str) for word in words):
            raise ValueError("the words are not all text")
        if not all(type(one) in (str, int) for one in labels):
            raise ValueError("the labels are not all names, nor all whole numbers")
        if len(words) != len(labels):
            raise ValueError(f"there are {len(words)} words and {len(labels)} labels")
        ends = (np.cumsum([len(word) + 1 for word in words], dtype=np.int64) - 1).tolist()
        starts = [end - len(word) for word, end in zip(words, ends, strict=True)]
        return (" ".join(words),), {"start": starts, "end": ends, "label": labels}

    def reference(self, label: Any) -> Any:
        return {**label, "label": [self._name(one) for one in label["label"]]}

    def _name(self, label: Any) -> str:
        """A whole number that is no name is a position: data sets commonly hold those."""
        if label in self._positions:
            return cast(str, label)
        if isinstance(label, int) and str(label) in self._positions:
            return str(label)
        if isinstance(label, int) and 0 <= label < len(self.labels):
            return self.labels[label]
        raise ValueError(f"unknown label {label!r}, known are {', '.join(self.labels)}")

    def is_reference(self, value: Any) -> bool:
        if not isinstance(value, dict) or set(value) != {"start", "end", "label"}:
            return False
        lists = list(value.values())
        if not all(isinstance(one, list) for one in lists) or len(set(map(len, lists))) != 1:
            return False
        return all(isinstance(place, int) for place in (*value["start"], *value["end"])) and set(value["label"]) <= set(self.labels)

    def with_tokenizer(self, tokenizer: Any) -> Self:
        decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
        return replace(self, decoder=json.dumps(decoder) if decoder else "", unknown=tokenizer.unk_token_id)

    # -- the ensemble ----------------------------------------------------------------------------------------------------------

    def outputs(self) -> tuple[Tensor, ...]:
        return (Tensor("ENTITIES", "TYPE_STRING"),)

    @property
    def example(self) -> dict[str, str]:
        return {"TEXT": "Ada Lovelace lived in London."}

    def request_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        options = super().request_options(given)
        read_option(options["ignore_labels"], "ignore_labels")  # here its client can still be told
        return options

    def features(self, columns: Columns, encoder: TextEncoder, options: Options) -> Features:
        texts = columns[0]
        if options["stride"] is None:
            encodings = encoder.encode(texts, truncation=options["truncation"], offsets=True)
            owners: Integers = np.arange(len(encodings))
        else:
            encodings, owners = encoder.windows(texts, stride=options["stride"])
        return Features(encodings, Origins(owners, self._notes(texts, owners, encodings, encoder)))

    def _notes(self, texts: Sequence[str], owners: Integers, encodings: Sequence[Encoding], encoder: TextEncoder) -> list[bytes]:
        """Of each of the model's rows: the tokens that are text, not the tokenizer's own, as :class:`Tokens` reads them.

        Args:
            owners: by row of the model, which of ``texts`` it is of.
        """
        vocabulary = Vocabulary.of(encoder)
        lengths = [len(encoding) for encoding in encodings]
        ids = _flat([encoding.ids for encoding in encodings])
        places = np.array([*chain.from_iterable(encoding.offsets for encoding in encodings)], dtype=np.int64).reshape(-1, 2)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        table = np.empty((len(ids), 4), dtype=NUMBERS)
        table[:, 0] = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        table[:, 1:3] = places
        unknown = np.zeros(len(ids), dtype=np.bool_) if self.unknown is None else ids == self.unknown
        table[:, 3] = vocabulary.continues(ids, places, owners[rows], texts) & ~unknown
        words = vocabulary.spelled[ids]
        for token in np.flatnonzero(unknown).tolist():
            words[token] = texts[owners[rows[token]]][places[token, 0] : places[token, 1]]
        kept = np.flatnonzero(_flat([encoding.special_tokens_mask for encoding in encodings]) == 0)
        bounds = np.searchsorted(rows[kept], np.arange(len(lengths) + 1)).tolist()
        table, spelled = table[kept], words[kept].tolist()
        return [Tokens.pack(table[start:end], spelled[start:end]) for start, end in pairwise(bounds)]

    def answers(self, outputs: Arrays, origins: Origins, options: Options) -> Arrays:
        tokens = Tokens.unpack(origins.notes)
        scores = softmax(outputs["logits"][tokens.rows, tokens.positions])
        ignored = set(read_option(options["ignore_labels"], "ignore_labels"))
        strategy = options["aggregation_strategy"]
        find = self._single if strategy == "none" else self._grouped
        found: list[list[Entity]] = [[] for _ in range(origins.count)]
        for row, entity in find(tokens, scores, strategy, ignored) if len(tokens.rows) else ():
            found[origins.owners[row]].append(entity)
        windows = np.bincount(origins.owners, minlength=origins.count)
        for owner in np.flatnonzero(windows > 1).tolist():
            found[owner] = without_overlaps(found[owner])
        entities = np.empty((origins.count, 1), dtype=np.object_)
        entities[:, 0] = [json.dumps(row, ensure_ascii=False).encode() for row in found]
        return {"ENTITIES": entities}

    def _single(
        self, tokens: Tokens, scores: npt.NDArray[np.float32], _strategy: str, ignored: set[str]
    ) -> Iterator[tuple[int, Entity]]:
        """Each token whose label is not ignored, with the row it is in."""
        best = scores.argmax(axis=-1)
        kept = np.flatnonzero(np.array([label not in ignored for label in self.labels])[best])
        most = scores.max(axis=-1)
        columns = [column[kept].tolist() for column in (tokens.rows, best, most, tokens.positions, tokens.starts, tokens.ends)]
        for token, row, label, score, index, start, end in zip(kept.tolist(), *columns, strict=True):
            named = {"entity": self.labels[label], "score": score, "index": index, "word": tokens.words[token]}
            yield row, {**named, "start": start, "end": end}

    def _grouped(
        self, tokens: Tokens, scores: npt.NDArray[np.float32], strategy: str, ignored: set[str]
    ) -> Iterator[tuple[int, Entity]]:
        """Each entity whose kind is not ignored, with the row it is in."""
        whole = strategy != "simple"
        firsts = tokens.word_starts() if whole else np.arange(len(tokens.rows))
        label, score = LABELLED_BY[strategy](scores, firsts)
        rows = tokens.rows[firsts]
        new = np.ones(len(firsts), dtype=np.bool_)
        new[1:] = (self._kinds[label][1:] != self._kinds[label][:-1]) | self._begins[label][1:] | (rows[1:] != rows[:-1])
        groups = np.flatnonzero(new)
        ends = np.append(groups[1:], len(firsts))
        means = np.add.reduceat(score, groups) / (ends - groups).astype(score.dtype)
        kept = np.flatnonzero(np.array([name not in ignored for name in self._group_names])[label[groups]])
        bounds = np.append(firsts, len(tokens.rows))  # of units among tokens
        for group in kept.tolist():
            unit, end = int(groups[group]), int(ends[group])
            pieces = bounds[unit : end + 1].tolist()
            words = tokens.words[pieces[0] : pieces[-1]]
            if whole:
                words = [self._spell(tokens.words[a:b]) for a, b in pairwise(pieces)]
            yield (
                int(rows[unit]),
                {
                    "entity_group": self._group_names[label[unit]],
                    "score": float(means[group]),
                    "word": self._spell(words),
                    "start": int(tokens.starts[pieces[0]]),
                    "end": int(tokens.ends[pieces[-1] - 1]),
                },
            )

    @cached_property
    def _kinds(self) -> Integers:
        """``[labels]``: equal where labels are of one kind of entity."""
        return np.unique([re.sub("^[BI]-", "", label) for label in self.labels], return_inverse=True)[1]

    @cached_property
    def _begins(self) -> Flags:
        """``[labels]``: whether an entity begins with it whatever was before."""
        return np.array([label.startswith("B-") for label in self.labels])

    @cached_property
    def _group_names(self) -> list[str]:
        return [label.split("-", 1)[-1] for label in self.labels]

    @cached_property
    def _positions(self) -> dict[Any, int]:
        return {label: index for index, label in reversed([*enumerate(self.labels)])}

    def _spell(self, tokens: list[str]) -> str:
        """What the tokenizer's decoder makes of tokens."""
        return cast(str, self._decoder.decode(tokens)) if self._decoder is not None else " ".join(tokens)

    @cached_property
    def _decoder(self) -> Any:
        if not self.decoder:
            return None
        from tokenizers import Tokenizer

        model = {"type": "WordLevel", "vocab": {}, "unk_token": ""}  # none of it is used: there is no decoder without
        return Tokenizer.from_str(json.dumps({"version": "1.0", "model": model, "decoder": json.loads(self.decoder)})).decoder

    # -- the client ------------------------------------------------------------------------------------------------------------

    def request_rows(self, inputs: Any) -> list[tuple[str, ...]]:
        if not inputs and isinstance(inputs, list | tuple):
            raise ValueError("at least one input is required")  # so says the pipeline
        return super().request_rows(inputs)

    def asked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """As the pipeline reads them: ``ignore_labels`` is a list, no strategy is ``none``, and two options that are older than
        strategies still choose one."""
        asked = super().asked(given)
        if isinstance(labels := asked.get("ignore_labels"), list | tuple | set):
            asked["ignore_labels"] = json.dumps([*labels])
        strategy = asked.get("aggregation_strategy")
        grouped, subwords = given.get("grouped_entities"), given.get("ignore_subwords")
        if grouped is not None or subwords is not None:
            strategy = ("first" if subwords else "simple") if grouped else "none"
        if isinstance(strategy, str):  # an enumeration of such among them
            strategy = str(getattr(strategy, "value", strategy)).lower()
        if strategy == "none" and "stride" in asked:
            raise ValueError("stride needs an aggregation_strategy other than none")
        return {**asked, "aggregation_strategy": "none" if strategy is None else strategy}

    pipeline_options: ClassVar[Mapping[str, Any]] = {"aggregation_strategy": "none", "ignore_labels": []}

    def ask_pipeline(self, pipeline: Any, rows: Sequence[Sequence[str]], *, max_length: int) -> list[Any]:  # noqa: ARG002
        """It cuts text at what the tokenizer says, and takes no other length."""
        found: list[Any] = pipeline([text for (text,) in rows], batch_size=len(rows), **self.pipeline_options)
        return found

    def pipeline_answers(self, answers: Arrays, **options: Any) -> list[Any]:
        self.refuse_options(options, "grouped_entities", "ignore_subwords", known=NOT_TAKEN)
        if options.get("is_split_into_words") or options.get("offset_mapping"):
            raise TypeError("texts are split into words by the server: give each as one string, without offset_mapping")
        return [json.loads(row) for row in answers["ENTITIES"][:, 0]]

    # -- training and judging --------------------------------------------------------------------------------------------------

    @property
    def metric(self) -> str:
        return "entities"

    @property
    def main_metric(self) -> str:
        """Where no label says that a word belongs to no entity, as with parts of speech, the share of right words says it best."""
        return "f1" if OUTSIDE in self.labels else "word_accuracy"

    def head(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
        }

    def targets(self, features: Features, references: Sequence[Any]) -> dict[str, list[Any]]:
        """A word's label stands at its first token; the others teach nothing."""
        return {
            "labels": [
                self._row_targets(encoding, references[owner])
                for encoding, owner in zip(features.encodings, features.origins.owners.tolist(), strict=True)
            ]
        }

    def _row_targets(self, encoding: Encoding, reference: Mapping[str, Any]) -> list[int]:
        targets = np.full(len(encoding), IGNORED, dtype=np.int64)
        text = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
        starts, ends = np.array(encoding.offsets, dtype=np.int64)[text].T
        firsts = first_tokens(starts, ends, reference)
        seen = firsts >= 0
        positions = np.array([self._positions[label] for label in reference["label"]], dtype=np.int64)
        targets[text[firsts[seen]]] = positions[seen]
        return targets.tolist()

    def predictions(self, answers: Arrays) -> list[Any]:
        """Of each row its tokens in order: ``{"start", "end", "label"}``, a list each."""
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
        """Of the tokens that either side says belong to an entity, the share that both label alike; 1 where there are none. With
        all tokens counted, the many that belong to none would hide what differs."""
        pairs = zip(answers["ENTITIES"][:, 0], original["ENTITIES"][:, 0], strict=True)
        return np.array([_shared(_by_place(ours), _by_place(theirs)) for ours, theirs in pairs], dtype=np.float64)

    def ties(self, original: Arrays) -> npt.NDArray[np.bool_]:
        """None: :meth:`agreement` takes close calls for the same, token by token."""
        return np.zeros(len(original["ENTITIES"]), dtype=np.bool_)


def _flat(lists: Sequence[Sequence[int]]) -> Integers:
    return np.array([*chain.from_iterable(lists)], dtype=np.int64)


def _refuse_pairs(pair: bool) -> None:
    if pair:
        raise ValueError("token-classification takes single texts, not pairs")


def _label(item: Entity) -> str:
    return cast(str, item["entity"] if "entity" in item else item["entity_group"])


def _by_place(row: bytes) -> dict[Any, tuple[str, float]]:
    """Label and score by place."""
    return {(item.get("index"), item["start"], item["end"]): (_label(item), item["score"]) for item in json.loads(row)}


def _shared(ours: dict[Any, tuple[str, float]], theirs: dict[Any, tuple[str, float]]) -> float:
    outside = (OUTSIDE, 0.0)
    pairs = [(ours.get(place, outside), theirs.get(place, outside)) for place in ours.keys() | theirs.keys()]
    told = [(one, other) for one, other in pairs if (one[0], other[0]) != (OUTSIDE, OUTSIDE)]
    same = sum(one[0] == other[0] or abs(one[1] - other[1]) < CLOSE for one, other in told)
    return same / len(told) if told else 1.0


TASK = TokenClassification
