"""Token classification: a text → its entities, each with label, score and place. Named entities, parts of speech, and similar.

The answers are those of ``transformers.pipeline("token-classification")``, including these rules:

* The tokenizer says what a word is only where it marks continuations (``##ing``): a token then continues the one before if its
  spelling has another length than the text it stands for. So an accent that lower-casing removes makes a continuation too. All
  other tokenizers (RoBERTa's, SentencePiece) get words split at spaces, punctuation included.
* ``word`` is what the tokenizer's decoder makes of the tokens, seldom the text itself: that is ``text[start:end]``. With some
  tokenizers ``start`` is the space before the word.
* An entity ends where the next one begins with ``B-`` or is of another kind. Labels without ``B-`` or ``I-`` count as ``I-``. The
  name of an entity is what follows the first ``-`` of its first label, whatever precedes it.
* ``stride`` reads a long text in overlapping windows (otherwise it is truncated), each labelled by itself. Of overlapping entities
  the longest stays, of equally long ones the one with the highest score. An entity cut by the end of a window may so stay beside
  its other half.

A request without parameters gets entities (``aggregation_strategy`` ``simple``). The client asks for ``none`` in that case, single
tokens, as the pipeline does. One difference: the pipeline takes ``stride`` without a strategy and refuses it with an explicit
``none``. So does the client; the server cannot tell the two apart and takes both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from ..types import Arrays, Features, Flags, Floats, Integers, JsonValue, Option, Origins, Tensor, TextColumns
from ._labels import OUTSIDE, softmax
from ._strings import json_column, read_option
from ._tokens import LABELLED_BY, NUMBERS, Entity, Tokens, Vocabulary, without_overlaps
from .base import ServedTask

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers.decoders import Decoder

    from ..tokenization import TextEncoder

STRATEGIES = ("none", "simple", "first", "average", "max")
NOT_TAKEN = ("is_split_into_words", "delimiter", "offset_mapping")
"""Options of the pipeline for texts that are split into words already."""


@dataclass(frozen=True, kw_only=True)
class TokenClassification(ServedTask):
    """Serves token classification.

    Attributes:
        labels: Label names in the order of the logits.
        aggregation_strategy: How tokens become entities, one of :data:`STRATEGIES`.
        ignore_labels: Labels (of entities: kinds) left out of answers: a JSON list, or names separated by commas.
        stride: Tokens that the windows of a long text share. None: text that is too long is truncated.
        decoder: The tokenizer's decoder as in ``tokenizer.json``; it spells words. Empty: tokens joined by spaces.
        unknown: Id of the unknown token. An answer shows the text itself in its place.
    """

    labels: tuple[str, ...]
    aggregation_strategy: str = "simple"
    ignore_labels: str = OUTSIDE
    stride: int | None = None
    decoder: str = ""
    unknown: int | None = None

    name: ClassVar[str] = "token-classification"
    options: ClassVar[Mapping[str, Option]] = {
        **ServedTask.options,
        "aggregation_strategy": Option(str, choices=STRATEGIES, help="How tokens become entities."),
        "ignore_labels": Option(str, help="Labels left out of answers, as JSON or separated by commas."),
        "stride": Option(int, minimum=0, help="Tokens that the windows of a long text share."),
    }
    token_level: ClassVar[bool] = True
    carries_metadata: ClassVar[bool] = True
    fan_out: ClassVar[int] = 4
    columns: ClassVar[Mapping[str, str | None]] = {"text": "tokens", "text_pair": None}

    def outputs(self) -> tuple[Tensor, ...]:
        """Return ``ENTITIES``, a JSON list."""
        return (Tensor("ENTITIES", "TYPE_STRING"),)

    @property
    def example(self) -> dict[str, str]:
        """Return a sentence with a person and a place."""
        return {"TEXT": "Ada Lovelace lived in London."}

    def check_options(self) -> None:
        """Refuse ``ignore_labels`` that cannot be read."""
        read_option(self.ignore_labels, "ignore_labels")

    def preprocess(self, columns: TextColumns, encoder: TextEncoder) -> Features:
        """Tokenize the texts, in windows with ``stride``; the metadata of a row are its tokens."""
        texts = columns[0]
        if self.stride is None:
            encodings = encoder.encode(texts, truncation=self.truncation, offsets=True)
            mapping: Integers = np.arange(len(encodings))
        else:
            encodings, mapping = encoder.windows(texts, stride=self.stride)
        return Features(encodings, Origins(mapping, self._metadata(texts, mapping, encodings, encoder)))

    def _metadata(
        self, texts: Sequence[str], sample_mapping: Integers, encodings: Sequence[Encoding], encoder: TextEncoder
    ) -> list[bytes]:
        """Pack, for each model row, its tokens without special tokens, as :class:`Tokens` unpacks them.

        Args:
            texts: Texts of the request rows.
            sample_mapping: ``[model rows]``, positions in ``texts``.
            encodings: The model rows.
            encoder: The tokenizer.
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
        table[:, 3] = vocabulary.continues(ids, places, sample_mapping[rows], texts) & ~unknown
        words = vocabulary.spelled[ids]
        for token in np.flatnonzero(unknown).tolist():
            words[token] = texts[sample_mapping[rows[token]]][places[token, 0] : places[token, 1]]
        kept = np.flatnonzero(_flat([encoding.special_tokens_mask for encoding in encodings]) == 0)
        bounds = np.searchsorted(rows[kept], np.arange(len(lengths) + 1)).tolist()
        table, spelled = table[kept], words[kept].tolist()
        return [Tokens.pack(table[start:end], spelled[start:end]) for start, end in pairwise(bounds)]

    def postprocess(self, outputs: Arrays, origins: Origins) -> Arrays:
        """Label the tokens and join them to entities."""
        tokens = Tokens.unpack(origins.metadata)
        scores = softmax(outputs["logits"][tokens.rows, tokens.positions])
        ignored = set(read_option(self.ignore_labels, "ignore_labels"))
        find = self._single if self.aggregation_strategy == "none" else self._grouped
        found: list[list[Entity]] = [[] for _ in range(origins.count)]
        for row, entity in find(tokens, scores, ignored) if len(tokens.rows) else ():
            found[origins.sample_mapping[row]].append(entity)
        windows = np.bincount(origins.sample_mapping, minlength=origins.count)
        for row in np.flatnonzero(windows > 1).tolist():
            found[row] = without_overlaps(found[row])
        return {"ENTITIES": json_column(found)}

    def _single(self, tokens: Tokens, scores: Floats, ignored: set[str]) -> Iterator[tuple[int, Entity]]:
        """Yield each token whose label is not ignored, with its model row."""
        best = scores.argmax(axis=-1)
        kept = np.flatnonzero(np.array([label not in ignored for label in self.labels])[best])
        most = scores.max(axis=-1)
        columns = [column[kept].tolist() for column in (tokens.rows, best, most, tokens.positions, tokens.starts, tokens.ends)]
        for token, row, label, score, index, start, end in zip(kept.tolist(), *columns, strict=True):
            word = tokens.words[token]
            yield row, Entity(entity=self.labels[label], score=score, index=index, word=word, start=start, end=end)

    def _grouped(self, tokens: Tokens, scores: Floats, ignored: set[str]) -> Iterator[tuple[int, Entity]]:
        """Yield each entity whose kind is not ignored, with its model row."""
        whole = self.aggregation_strategy != "simple"
        firsts = tokens.word_starts() if whole else np.arange(len(tokens.rows))
        label, score = LABELLED_BY[self.aggregation_strategy](scores, firsts)
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
                Entity(
                    entity_group=self._group_names[label[unit]],
                    score=float(means[group]),
                    word=self._spell(words),
                    start=int(tokens.starts[pieces[0]]),
                    end=int(tokens.ends[pieces[-1] - 1]),
                ),
            )

    @cached_property
    def _kinds(self) -> Integers:
        """Number the labels by kind of entity: ``[labels]``."""
        return np.unique([re.sub("^[BI]-", "", label) for label in self.labels], return_inverse=True)[1]

    @cached_property
    def _begins(self) -> Flags:
        """Tell which labels always begin an entity: ``[labels]``."""
        return np.array([label.startswith("B-") for label in self.labels])

    @cached_property
    def _group_names(self) -> list[str]:
        return [label.split("-", 1)[-1] for label in self.labels]

    def _spell(self, tokens: list[str]) -> str:
        """Decode tokens as the tokenizer does."""
        return cast(str, self._decoder.decode(tokens)) if self._decoder is not None else " ".join(tokens)

    @cached_property
    def _decoder(self) -> Decoder | None:
        if not self.decoder:
            return None
        from tokenizers import Tokenizer

        model = {"type": "WordLevel", "vocab": {}, "unk_token": ""}  # unused: a decoder exists only within a tokenizer
        return Tokenizer.from_str(json.dumps({"version": "1.0", "model": model, "decoder": json.loads(self.decoder)})).decoder

    # -- the client -----------------------------------------------------------------------------------------------------------

    def parse_inputs(self, inputs: object) -> list[tuple[str, ...]]:
        """Take strings. An empty list is refused, as the pipeline does."""
        if not inputs and isinstance(inputs, list | tuple):
            raise ValueError("at least one input is required")
        return super().parse_inputs(inputs)

    def sanitize_parameters(self, given: Mapping[str, object]) -> dict[str, JsonValue]:
        """Read the options as the pipeline does.

        ``ignore_labels`` is a list. No strategy means ``none``. Two options that are older than the strategies still choose one.
        """
        parameters = super().sanitize_parameters(given)
        if isinstance(labels := given.get("ignore_labels"), list | tuple | set):
            parameters["ignore_labels"] = json.dumps([*labels])
        strategy = parameters.get("aggregation_strategy")
        grouped, subwords = given.get("grouped_entities"), given.get("ignore_subwords")
        if grouped is not None or subwords is not None:
            strategy = ("first" if subwords else "simple") if grouped else "none"
        if isinstance(strategy, str):  # perhaps a member of the pipeline's enumeration
            strategy = str(getattr(strategy, "value", strategy)).lower()
        if strategy == "none" and "stride" in parameters:
            raise ValueError("stride needs an aggregation_strategy other than none")
        return {**parameters, "aggregation_strategy": "none" if strategy is None else strategy}

    def format_answers(self, answers: Arrays, **options: object) -> Sequence[object]:
        """Return a list of entities (or tokens) per row."""
        self.refuse_options(options, "grouped_entities", "ignore_subwords", known=NOT_TAKEN)
        if options.get("is_split_into_words") or options.get("offset_mapping"):
            raise TypeError("texts are split into words by the server: give each as one string, without offset_mapping")
        return [json.loads(row) for row in answers["ENTITIES"][:, 0]]


def _flat(lists: Sequence[Sequence[int]]) -> Integers:
    return np.array([*chain.from_iterable(lists)], dtype=np.int64)


TASK = TokenClassification
