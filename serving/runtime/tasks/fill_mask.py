"""Fill-mask: a text with mask tokens → the most probable tokens in their place.

The answers are those of ``transformers.pipeline("fill-mask")``, including these rules:

* A text with one mask gives a list of answers, a text with several masks a list of such lists, in the order of the masks. Each
  mask is filled as if the others stayed masked, and the sequences of such a text show special tokens (``[CLS]`` and similar).
* A list of one text gives what the text alone gives.
* A target that is not a token of the vocabulary stands for the first token of its own text. A target without any is skipped.

A text longer than the model accepts is truncated. (The pipeline fails on it unless truncation is on.) If no mask is left, it is
refused like a text without a mask. A text may have at most :data:`MOST_MASKS` masks, because every row of a batch costs as much as
the row with the most masks, and it gets at most :data:`MOST_ANSWERS` answers.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, TypedDict

import numpy as np

from ..types import Arrays, Features, JsonValue, Origins, Setting, Tensor, TextColumns
from ._clean_up import cleaned_up
from ._masks import NUMBERS, Mask, Row, best_tokens, read_metadata, with_metadata
from ._strings import read_option, write_strings
from ._tokenizer_options import TokenizerOptionsTask

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

    from tokenizers import Tokenizer

    from ..tokenization import TextEncoder

NO_MASK = "no mask token"
"""Part of the message about a text without a mask."""
MOST_MASKS = 16
"""Maximum number of masks in one text."""
LONGEST_TARGETS = 2**15
"""Maximum number of characters of the targets: each target is tokenized."""
MOST_ANSWERS = 10_000
"""Maximum number of answers to one text, all its masks together: each answer holds the whole text."""


class MaskAnswer(TypedDict, total=False):
    """One token for one mask. ``token_str`` and ``sequence`` are there once it is decoded."""

    score: float
    token: int
    token_str: str
    sequence: str


@dataclass(frozen=True, kw_only=True)
class FillMask(TokenizerOptionsTask):
    """Serves fill-mask.

    Attributes:
        mask_token: The mask token as it stands in texts.
        mask_token_id: Its id.
        pad_token_id: Id of the padding token. -1: none.
        clean_up: Whether decoding removes the spaces in front of punctuation, as the checkpoint's tokenizer says.
        vocabulary: Number of tokens that the model knows.
        top_k: Number of answers per mask.
        targets: Score only these tokens: a JSON list, or strings separated by commas. Empty: all tokens.
    """

    mask_token: str = ""
    mask_token_id: int = -1
    pad_token_id: int = -1
    clean_up: bool = False
    vocabulary: int = 0
    top_k: int = 5
    targets: str = ""

    name: ClassVar[str] = "fill-mask"
    options: ClassVar[Mapping[str, Setting]] = {
        **TokenizerOptionsTask.options,
        "top_k": Setting(int, minimum=0, help="Number of answers per mask."),
        "targets": Setting(str, help="Score only these tokens, as JSON or separated by commas."),
    }
    carries_metadata: ClassVar[bool] = True
    needs_tokenizer: ClassVar[bool] = True
    tokenizer_kwargs: ClassVar[str | None] = "tokenizer_kwargs"
    pipeline_refusals: ClassVar[tuple[str, ...]] = (NO_MASK,)

    def outputs(self) -> tuple[Tensor, ...]:
        """Return ``PREDICTIONS``, a JSON list."""
        return (Tensor("PREDICTIONS", "TYPE_STRING"),)

    @property
    def example(self) -> dict[str, str]:
        """Return a sentence with one mask."""
        return {"TEXT": f"The capital of France is {self.mask_token}."}

    def long_example(self, repeats: int) -> dict[str, str]:
        """Return a text with a mask at either end: one of them is left, whichever side is truncated."""
        return {"TEXT": " ".join([self.mask_token, *["The capital of France."] * repeats, self.mask_token])}

    def with_options(self, given: Mapping[str, JsonValue]) -> Self:
        """Return the task with the parameters of a request; it shares the cache of decoded tokens."""
        _ = self._words  # made before it is shared
        return super().with_options(given)

    def check_options(self) -> None:
        """Refuse a ``top_k`` larger than the vocabulary, and targets that take long to look up."""
        if len(self.targets) > LONGEST_TARGETS:
            raise ValueError(f"option targets has {len(self.targets)} characters, at most {LONGEST_TARGETS} are taken")
        if self.top_k > self.vocabulary > 0 and not self.targets:
            raise ValueError(f"option top_k must be {self.vocabulary} or less, the model knows no more tokens")

    def preprocess(self, columns: TextColumns, encoder: TextEncoder) -> Features:
        """Tokenize the texts; the metadata of a row are the targets and its token ids."""
        targets = self._target_ids(encoder.tokenizer)
        encodings = self._encode(columns, encoder)
        rows = [encoding.ids for encoding in encodings]
        for row, (ids, encoding) in enumerate(zip(rows, encodings, strict=True)):
            masks = ids.count(self.mask_token_id)
            if masks == 0:
                within = f" within the {len(ids)} tokens that are kept of it" if encoding.overflowing else ""
                raise ValueError(f"row {row}: {NO_MASK} ({self.mask_token}) found{within}")
            if masks > MOST_MASKS:
                raise ValueError(f"row {row}: {masks} mask tokens ({self.mask_token}), at most {MOST_MASKS} can be filled at once")
            if masks * self.top_k > MOST_ANSWERS and not targets:
                raise ValueError(f"row {row}: top_k {self.top_k} for {masks} masks; {MOST_ANSWERS} answers are given at most")
        return with_metadata(encodings, rows, targets)

    def _target_ids(self, tokenizer: Tokenizer) -> list[int]:
        """Return the ids of the targets, in the order in which the pipeline has them."""
        if not self.targets:
            return []
        found = [
            token
            for token in (target_id(target, tokenizer) for target in read_option(self.targets, "targets") if target)
            if token is not None
        ]
        if not found:
            raise ValueError("option targets names no token of the vocabulary")
        if unknown := [token for token in found if token >= self.vocabulary]:
            raise ValueError(f"option targets: the model does not know token {tokenizer.id_to_token(unknown[0])!r}")
        return list(set(found))

    def postprocess(self, outputs: Arrays, origins: Origins) -> Arrays:
        """Find the best tokens of each mask, without ``token_str`` and ``sequence``."""
        return _tensors([[_plain(mask) for mask in row.masks] for row in self._filled(outputs, origins)])

    def decoded_postprocess(self, outputs: Arrays, origins: Origins, tokenizer: Tokenizer) -> Arrays:
        """Find the best tokens of each mask, with ``token_str`` and ``sequence``."""
        rows = self._filled(outputs, origins)
        sequences = self._sequences(rows, tokenizer)
        self._cache_words(rows, tokenizer)
        return _tensors(
            [
                [
                    [
                        {"score": score, "token": token, "token_str": self._words[token], "sequence": next(sequences)}
                        for score, token in zip(mask.scores, mask.tokens, strict=True)
                    ]
                    for mask in row.masks
                ]
                for row in rows
            ]
        )

    def _filled(self, outputs: Arrays, origins: Origins) -> list[Row]:
        """Find the best tokens of every mask of every row."""
        metadata = [read_metadata(packed) for packed in origins.metadata]
        positions = [np.flatnonzero(ids == self.mask_token_id).tolist() for _, ids in metadata]
        counts = np.array([len(each) for each in positions])
        logits = outputs["logits"]
        picked = logits[:, 0] if (counts == 1).all() else logits[np.arange(logits.shape[1]) < counts[:, None]]
        targets = metadata[0][0] if metadata else np.empty(0, dtype=NUMBERS)
        scores, tokens = best_tokens(picked, self.top_k, targets)
        masks = iter([Mask(*pair) for pair in zip(scores.tolist(), tokens.tolist(), strict=True)])
        return [Row(ids.tolist(), each, [next(masks) for _ in each]) for (_, ids), each in zip(metadata, positions, strict=True)]

    def _sequences(self, rows: Sequence[Row], tokenizer: Tokenizer) -> Iterator[str]:
        """Decode the texts with each token in its mask's place, by row, mask and token."""
        ids: dict[bool, list[list[int]]] = {True: [], False: []}
        for row in rows:
            ids[len(row.masks) == 1] += row.sequences(self.pad_token_id)
        texts = {single: iter(self.decode(tokenizer, each, skip_special_tokens=single)) for single, each in ids.items()}
        return (next(texts[len(row.masks) == 1]) for row in rows for mask in row.masks for _ in mask.tokens)

    def _cache_words(self, rows: Sequence[Row], tokenizer: Tokenizer) -> None:
        new = list({token for row in rows for mask in row.masks for token in mask.tokens} - self._words.keys())
        self._words.update(zip(new, self.decode(tokenizer, [[token] for token in new], skip_special_tokens=False), strict=True))

    def decode(self, tokenizer: Tokenizer, ids: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        """Decode token ids as the checkpoint's own tokenizer does."""
        texts: list[str] = tokenizer.decode_batch(ids, skip_special_tokens=skip_special_tokens) if ids else []
        return [cleaned_up(text) for text in texts] if self.clean_up else texts

    @cached_property
    def _words(self) -> dict[int, str]:
        """Cache the text of each token that was an answer."""
        return {}

    # -- the client -----------------------------------------------------------------------------------------------------------

    def sanitize_parameters(self, given: Mapping[str, object]) -> tuple[dict[str, JsonValue], dict[str, object]]:
        """Take ``targets`` as a string or a list of strings."""
        parameters, shown = super().sanitize_parameters({name: value for name, value in given.items() if name != "targets"})
        targets = given.get("targets")
        if targets is None:
            return parameters, shown
        listed = [targets] if isinstance(targets, str) else targets
        if not isinstance(listed, Collection):
            raise TypeError(f"targets must be a string or a list of them, not {targets!r:.80}")
        if not all(isinstance(one, str) for one in listed):
            raise ValueError(f"targets must be strings: {targets!r:.80}")
        return {**parameters, "targets": write_strings([*listed])}, shown

    def format_answers(self, answers: Arrays, **options: object) -> Sequence[object]:  # noqa: ARG002
        """Return a list of ``{"score", "token", "token_str", "sequence"}`` per row, best first.

        A row with several masks gives a list of such lists.
        """
        return [json.loads(row) for row in answers["PREDICTIONS"][:, 0]]

    def format_result(self, inputs: object, answers: Sequence[object], options: Mapping[str, object]) -> object:
        """Return for a list of one text what the text alone gives, as the pipeline does."""
        return answers[0] if len(answers) == 1 else super().format_result(inputs, answers, options)


def target_id(target: str, tokenizer: Tokenizer) -> int | None:
    """Return the token that ``target`` is, else the first of the tokens it is made of, if any."""
    token: int | None = tokenizer.token_to_id(target)
    if token is not None:
        return token
    ids: list[int] = tokenizer.encode(target, add_special_tokens=False).ids
    first = -1 if (tokenizer.truncation or {}).get("direction") == "left" else 0  # what is left where it is cut to one token
    return ids[first] if ids else None


def _plain(mask: Mask) -> list[MaskAnswer]:
    return [{"score": score, "token": token} for score, token in zip(mask.scores, mask.tokens, strict=True)]


def _tensors(rows: Sequence[list[list[MaskAnswer]]]) -> Arrays:
    """Write the answers by row and mask as JSON; those of a single mask without the list around them."""
    predictions = np.empty((len(rows), 1), dtype=np.object_)
    predictions[:, 0] = [json.dumps(row[0] if len(row) == 1 else row, ensure_ascii=False).encode() for row in rows]
    return {"PREDICTIONS": predictions}


def read_predictions(answers: Arrays) -> list[list[list[MaskAnswer]]]:
    """Read ``PREDICTIONS`` back, by row and mask."""
    rows = [json.loads(row) for row in answers["PREDICTIONS"][:, 0]]
    return [row if row and isinstance(row[0], list) else [row] for row in rows]


TASK = FillMask
