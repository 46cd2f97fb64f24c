"""Makes a tokenizer of the library ``tokenizers`` of a SentencePiece model and a vocabulary that numbers its pieces otherwise."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from export.slow_tokenizers.sentencepiece_model import ABSENT, RESERVED, SPACE, SentencePieceModel, escaped

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import Model
    from tokenizers.normalizers import Normalizer

CODE_BEGINS, CODE_ENDS = "\ufdd0", "\ufdd1"
"""Stand for ``>>`` and ``<<`` of a code of a language at the beginning of a text, where alone it is a token."""
FOREIGN = "\ufdd2"
"""Begins the tokens that the model has no piece for, so that they are never found in a text. Decoding leaves it out."""


@dataclass(frozen=True, kw_only=True)
class SentencePieceVocabulary:
    """A SentencePiece model and the numbers of tokens.

    Attributes:
        model: The model.
        tokens: The tokens by their numbers.
        unknown: The token of what is unknown.
        special: Tokens that are found in a text before the model is asked.
        codes: Tokens of the form ``>>deu<<`` that may begin a text, for unigram models. None: such a beginning has no meaning.
    """

    model: SentencePieceModel
    tokens: Sequence[str]
    unknown: str
    special: Collection[str]
    codes: Collection[str] | None = None

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """Pieces of the model that have no number."""
        known = set(self.tokens)
        return tuple(piece for piece in self.model.pieces if piece not in known)

    @cached_property
    def _strange(self) -> frozenset[str]:
        """Tokens of characters that no piece of the model has. Texts of other languages may have them."""
        characters = self.model.characters
        own = (*self.special, *(self.codes or ()))
        return frozenset(token for token in self.tokens if characters.isdisjoint(token)).difference(own)

    def tokenizer(self) -> Tokenizer:
        """Make the tokenizer. It adds no special tokens.

        A piece without a number is not used: SentencePiece may choose one, which ``transformers`` then takes as unknown.
        """
        from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

        tokenizer = Tokenizer(self._unigram() if self.model.algorithm == "unigram" else self._byte_pairs())
        tokenizer.normalizer = normalizers.Sequence(
            [
                *self._code_steps(),
                *self.model.charsmap_steps(),
                *self.model.space_steps(),
                *self.model.unknown_steps(self._strange, marks=(CODE_BEGINS, CODE_ENDS)),
                *self._prefix_steps(),
            ]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=SPACE, prepend_scheme="never", split=self.model.splits_at_spaces
        )
        written = {CODE_BEGINS: ">>", CODE_ENDS: "<<", FOREIGN: "", SPACE: " "}
        tokenizer.decoder = decoders.Sequence(
            [
                *(decoders.Replace(inside, outside) for inside, outside in written.items()),
                decoders.Fuse(),
                decoders.Replace(Regex(r"\A +| +\z"), ""),
            ]
        )
        return tokenizer

    def _entry(self, token: str) -> str:
        """Return a token as the model has it."""
        if token in self.model.pieces or token in self.special or token in self._strange:
            return token
        if self.codes is not None and token in self.codes:
            return f"{CODE_BEGINS}{self.model.replaced(token[2:-2])}{CODE_ENDS}"
        return FOREIGN + token

    def _unigram(self) -> Model:
        from tokenizers import models

        lowest = min((self.model.pieces[token] for token in self.tokens if token in self.model.pieces), default=0.0)
        scores = [(self._entry(token), self.model.pieces.get(token, lowest)) for token in self.tokens]
        return models.Unigram(scores, unk_id=list(self.tokens).index(self.unknown))

    def _byte_pairs(self) -> Model:
        from tokenizers import models
        from transformers.convert_slow_tokenizer import generate_merges

        own = {token: number for number, token in enumerate(self.tokens) if token in self.model.pieces}
        merges = generate_merges(own, {token: self.model.pieces[token] for token in own})
        vocabulary = {self._entry(token): number for number, token in enumerate(self.tokens)}
        return models.BPE(vocabulary, merges, unk_token=self.unknown, fuse_unk=True)

    def _code_steps(self) -> list[Normalizer]:
        """Return the steps that mark the code of a language at the beginning."""
        from tokenizers import Regex, normalizers

        steps: list[Normalizer] = [normalizers.Replace(Regex(f"[{RESERVED}]"), ABSENT)]
        if self.codes is None:
            return steps
        if self.codes:
            names = "|".join("".join(map(escaped, code[2:-2])) for code in sorted(self.codes))
            steps.append(normalizers.Replace(Regex(rf"\A>>(?=(?:{names})<<)"), CODE_BEGINS))
            steps.append(normalizers.Replace(Regex(rf"\A{CODE_BEGINS}(?:{names})\K<<"), CODE_ENDS))
        return [*steps, normalizers.Replace(Regex(r"\A>>(?m:.*?)<<"), CODE_BEGINS + CODE_ENDS)]

    def _prefix_steps(self) -> list[Normalizer]:
        """Return the steps that put a space in front of the text, behind the code of a language."""
        from tokenizers import Regex, normalizers

        steps: list[Normalizer] = []
        if self.codes is not None and self.model.collapses_spaces:
            steps.append(normalizers.Replace(Regex(rf"(?<={CODE_ENDS}){SPACE}+"), ""))
        if self.model.prepends_space:
            steps.append(normalizers.Replace(Regex(rf"(?:\A(?!{CODE_BEGINS})|(?<={CODE_ENDS}))(?!\z)"), SPACE))
        return steps


def numbered_tokens(encoder: Mapping[str, int]) -> list[str]:
    """Return the tokens of a vocabulary by their numbers.

    Raises:
        ValueError: A number is left out or stands twice.
    """
    tokens = sorted(encoder, key=encoder.__getitem__)
    if [encoder[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError("its vocabulary does not number its tokens from 0 on, each once")
    return tokens
