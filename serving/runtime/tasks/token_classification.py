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
tokens, as the pipeline does, except where a strategy was chosen when the model was exported. One difference: the pipeline takes
``stride`` without a strategy and refuses it with an explicit ``none``. So does the client; the server cannot tell the two apart and
takes both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from ..types import Arrays, Features, Flags, Floats, Integers, JsonValue, Origins, Setting, Tensor, TextColumns
from ._encoder import EncoderTask
from ._labels import OUTSIDE, softmax
from ._strings import json_column, read_option, read_strings, write_strings
from ._tokens import LABELLED_BY, NUMBERS, Entity, Tokens, Vocabulary, without_overlaps

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers.decoders import Decoder

    from ..tokenization import TextEncoder

STRATEGIES = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True, kw_only=True)
class TokenClassification(EncoderTask):
    """Serves token classification.

    Attributes:
        labels: Label names in the order of the logits, as the checkpoint's config has them.
        aggregation_strategy: How tokens become entities, one of :data:`STRATEGIES`. None: ``simple`` for a request that does not
            say it; the client then asks for ``none``.
        ignore_labels: Labels (of entities: kinds) left out of answers: a JSON list, or names separated by commas.
        stride: Tokens that the windows of a long text share. None: text that is too long is truncated.
        decoder: The tokenizer's decoder as in ``tokenizer.json``; it spells words. Empty: tokens joined by spaces.
        unknown: Id of the unknown token. An answer shows the text itself in its place.
        is_split_into_words: Whether a request's ``TEXT`` is a JSON list of words.
        delimiter: What stands between these words in the text that positions refer to.
    """

    labels: tuple[str | int, ...]
    aggregation_strategy: str | None = None
    ignore_labels: str = OUTSIDE
    stride: int | None = None
    decoder: str = ""
    unknown: int | None = None
    is_split_into_words: bool = False
    delimiter: str = " "

    name: ClassVar[str] = "token-classification"
    options: ClassVar[Mapping[str, Setting]] = {
        **EncoderTask.options,
        "aggregation_strategy": Setting(str, choices=STRATEGIES, help="How tokens become entities."),
        "ignore_labels": Setting(str, help="Labels left out of answers, as JSON or separated by commas."),
        "stride": Setting(int, minimum=0, help="Tokens that the windows of a long text share."),
        "is_split_into_words": Setting(bool, help="TEXT is a JSON list of words."),
        "delimiter": Setting(str, help="Text between these words, for positions."),
    }
    request_only: ClassVar[frozenset[str]] = frozenset({"is_split_into_words", "delimiter"})
    token_level: ClassVar[bool] = True
    carries_metadata: ClassVar[bool] = True
    fan_out: ClassVar[int] = 4
    columns: ClassVar[Mapping[str, str | None]] = {"text": "tokens", "text_pair": None}
    reads_words: ClassVar[bool] = True
    client_options: ClassVar[tuple[str, ...]] = (
        "grouped_entities",
        "ignore_subwords",
        "is_split_into_words",
        "delimiter",
        "offset_mapping",
    )

    def outputs(self) -> tuple[Tensor, ...]:
        """Return ``ENTITIES``, a JSON list."""
        return (Tensor("ENTITIES", "TYPE_STRING"),)

    @property
    def example(self) -> dict[str, str]:
        """Return a sentence with a person and a place."""
        return {"TEXT": "Ada Lovelace lived in London."}

    def check_options(self) -> None:
        """Refuse ``ignore_labels`` that cannot be read, and words in windows."""
        read_option(self.ignore_labels, "ignore_labels")
        if self.is_split_into_words and self.stride is not None:
            raise ValueError("words are not read in windows: leave out stride, or give each text as one string")

    def preprocess(self, columns: TextColumns, encoder: TextEncoder) -> Features:
        """Tokenize the texts, in windows with ``stride``; the metadata of a row are its tokens."""
        texts, words = columns[0], None
        if self.is_split_into_words:
            words = [read_strings(text, "TEXT") for text in texts]
            texts = [self.delimiter.join(row) for row in words]
            encodings = encoder.encode_words(words, truncation=self.truncation)
            mapping: Integers = np.arange(len(encodings))
        elif self.stride is None:
            encodings = encoder.encode(texts, truncation=self.truncation, offsets=True)
            mapping = np.arange(len(encodings))
        else:
            encodings, mapping = encoder.windows(texts, stride=self.stride)
        places = np.array([*chain.from_iterable(encoding.offsets for encoding in encodings)], dtype=np.int64).reshape(-1, 2)
        if words is not None:
            places += self._word_places(words, encodings)[:, None]
        origins = Origins(mapping, self._metadata(texts, mapping, encodings, places, encoder))
        return Features(encodings, origins, windows=self.stride is not None)

    def _word_places(self, words: Sequence[Sequence[str]], encodings: Sequence[Encoding]) -> Integers:
        """Find where the word of each token begins in the text of its row: ``[tokens]``. 0 for special tokens."""
        found: list[int] = []
        for row, encoding in zip(words, encodings, strict=True):
            starts = [0, *accumulate(len(word) + len(self.delimiter) for word in row)]
            found += [0 if word is None else starts[word] for word in encoding.word_ids]
        return np.array(found, dtype=np.int64)

    def _metadata(
        self,
        texts: Sequence[str],
        sample_mapping: Integers,
        encodings: Sequence[Encoding],
        places: Integers,
        encoder: TextEncoder,
    ) -> list[bytes]:
        """Pack, for each model row, its tokens without special tokens, as :class:`Tokens` unpacks them.

        Args:
            texts: Texts of the request rows.
            sample_mapping: ``[model rows]``, positions in ``texts``.
            encodings: The model rows.
            places: ``[tokens of all model rows, 2]``, start and end of each token in its text.
            encoder: The tokenizer.
        """
        vocabulary = Vocabulary.of(encoder)
        lengths = [len(encoding) for encoding in encodings]
        ids = _flat([encoding.ids for encoding in encodings])
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
        kept = np.flatnonzero(np.array([str(label) not in ignored for label in self.labels])[best])
        most = scores.max(axis=-1)
        columns = [column[kept].tolist() for column in (tokens.rows, best, most, tokens.positions, tokens.starts, tokens.ends)]
        for token, row, label, score, index, start, end in zip(kept.tolist(), *columns, strict=True):
            word = tokens.words[token]
            yield row, Entity(entity=self.labels[label], score=score, index=index, word=word, start=start, end=end)

    def _grouped(self, tokens: Tokens, scores: Floats, ignored: set[str]) -> Iterator[tuple[int, Entity]]:
        """Yield each entity whose kind is not ignored, with its model row."""
        strategy = self.aggregation_strategy or "simple"
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
        return np.unique([re.sub("^[BI]-", "", str(label)) for label in self.labels], return_inverse=True)[1]

    @cached_property
    def _begins(self) -> Flags:
        """Tell which labels always begin an entity: ``[labels]``."""
        return np.array([str(label).startswith("B-") for label in self.labels])

    @cached_property
    def _group_names(self) -> list[str]:
        return [str(label).split("-", 1)[-1] for label in self.labels]

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

    def parse_call(self, arguments: tuple[object, ...], given: Mapping[str, object]) -> tuple[object, dict[str, object]]:
        """Take a list of words, or several, with ``is_split_into_words``; they travel as JSON."""
        inputs, options = super().parse_call(arguments, given)
        if not options.get("is_split_into_words"):
            return inputs, options
        if not isinstance(inputs, list):
            raise ValueError(f"with is_split_into_words, a text is a list of words, not {inputs!r:.80}")
        rows = inputs if all(isinstance(row, list) for row in inputs) else [inputs]
        return [write_strings(row) for row in rows], options

    def parse_inputs(self, inputs: object) -> list[tuple[str, ...]]:
        """Take strings. An empty list is refused, as the pipeline does."""
        if not inputs and isinstance(inputs, list | tuple):
            raise ValueError("at least one input is required")
        return super().parse_inputs(inputs)

    def sanitize_parameters(self, given: Mapping[str, object]) -> tuple[dict[str, JsonValue], dict[str, object]]:
        """Read the options as the pipeline does.

        ``ignore_labels`` is a list. Two options that are older than the strategies still choose one.
        """
        left_out = {"ignore_labels", "aggregation_strategy"}
        if not given.get("is_split_into_words"):
            left_out |= self.request_only
        parameters, shown = super().sanitize_parameters({name: value for name, value in given.items() if name not in left_out})
        if given.get("offset_mapping"):
            raise ValueError("offset_mapping is not served: the server's tokenizer finds the offsets")
        if (labels := given.get("ignore_labels")) is not None:
            if isinstance(labels, str) or not isinstance(labels, Collection):
                raise TypeError(f"ignore_labels must be a list of labels, not {labels!r:.80}")
            parameters["ignore_labels"] = write_strings([str(label) for label in labels])
        strategy = given.get("aggregation_strategy")
        grouped, subwords = given.get("grouped_entities"), given.get("ignore_subwords")
        if grouped is not None or subwords is not None:
            strategy = ("first" if subwords else "simple") if grouped else "none"
        if isinstance(strategy, str):  # perhaps a member of the pipeline's enumeration
            strategy = str(getattr(strategy, "value", strategy)).lower()
        if strategy == "none" and "stride" in parameters:
            raise ValueError("stride needs an aggregation_strategy other than none")
        return parameters | self.request_parameters({"aggregation_strategy": strategy}), shown

    def pipeline_defaults(self) -> dict[str, JsonValue]:
        """Return the strategy ``none``, except where the model was exported with another one."""
        return {"aggregation_strategy": "none"} if self.aggregation_strategy is None else {}

    def format_answers(self, answers: Arrays, **options: object) -> Sequence[object]:  # noqa: ARG002
        """Return a list of entities (or tokens) per row."""
        return [json.loads(row) for row in answers["ENTITIES"][:, 0]]


def _flat(lists: Sequence[Sequence[int]]) -> Integers:
    return np.array([*chain.from_iterable(lists)], dtype=np.int64)


TASK = TokenClassification
