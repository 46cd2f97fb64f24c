"""Reads a SentencePiece model, and expresses what it does to a text before it looks for pieces."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer

ALGORITHMS: Mapping[int, Literal["unigram", "bpe"]] = {1: "unigram", 2: "bpe"}
"""SentencePiece's numbers of the algorithms that the library ``tokenizers`` has too."""
NORMAL, UNKNOWN, CONTROL, UNUSED = 1, 2, 3, 5
"""SentencePiece's numbers of the types of pieces."""
SPACE = "▁"
ABSENT = "\ufdd4"
"""A character that no piece has, in place of several such characters in a row. Unicode has none of this number."""
BREAK = "\U0010fffe"
"""A character between two that SentencePiece looks at one by one, and ``tokenizers`` together. Unicode has none of this number."""
RESERVED = "\ufdd0-\ufdd3\U0010fffe"
"""Characters that mark something in a text; see :mod:`.sentencepiece_tokenizer`."""
JOINED = r"(?!\A)(?=[\p{M}\x{200c}\x{200d}\x{e33}\x{eb3}])|(?<=\r)(?=\n)|(?<=[\x{600}-\x{605}\x{6dd}\x{70f}])"
"""Places between characters that are one to a reader. Where the first is to be replaced, ``tokenizers`` loses the second."""
MOST_MARKED = 40
"""Most characters between two marks."""


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """A SentencePiece model.

    Attributes:
        algorithm: How it finds pieces.
        pieces: Score of each piece.
        charsmap: What the text's characters are replaced by, as SentencePiece stores it. Empty: nothing.
        composes: Whether the charsmap makes one character of a letter and its accent.
        collapses_spaces: Whether spaces around the text are removed, and several in a row become one.
        prepends_space: Whether a space is put in front of the text.
    """

    algorithm: Literal["unigram", "bpe"]
    pieces: Mapping[str, float]
    charsmap: bytes
    composes: bool
    collapses_spaces: bool
    prepends_space: bool

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            ValueError: It does what cannot be expressed.
        """
        from transformers.convert_slow_tokenizer import import_protobuf

        model = import_protobuf().ModelProto()
        model.ParseFromString(path.read_bytes())
        algorithm = ALGORITHMS.get(model.trainer_spec.model_type)
        if algorithm is None:
            raise ValueError(f"{path.name} is neither a unigram nor a BPE model")
        if odd := [piece.piece for piece in model.pieces if piece.type not in (NORMAL, UNKNOWN, CONTROL, UNUSED)]:
            raise ValueError(f"{path.name} has pieces for bytes or of its user, such as {odd[0]!r}")
        if model.trainer_spec.treat_whitespace_as_suffix or not model.normalizer_spec.escape_whitespaces:
            raise ValueError(f"{path.name} does not put spaces in front of its pieces")
        return cls(
            algorithm=algorithm,
            pieces={piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL},
            charsmap=model.normalizer_spec.precompiled_charsmap,
            composes="nfkc" in model.normalizer_spec.name,
            collapses_spaces=model.normalizer_spec.remove_extra_whitespaces,
            prepends_space=model.normalizer_spec.add_dummy_prefix,
        )

    @property
    def characters(self) -> frozenset[str]:
        """The characters of all pieces."""
        return frozenset(SPACE).union(*self.pieces)

    @property
    def splits_at_spaces(self) -> bool:
        """Whether each piece belongs to one word."""
        return not any(SPACE in piece[1:] for piece in self.pieces)

    def charsmap_steps(self) -> list[Normalizer]:
        """Return the steps that replace characters."""
        from tokenizers import Regex, normalizers

        if not self.charsmap:
            return []
        return [
            *([normalizers.NFC()] if self.composes else []),  # Precompiled composes some letters only
            normalizers.Replace(Regex(JOINED), BREAK),
            normalizers.Precompiled(self.charsmap),
            normalizers.Replace(BREAK, ""),
        ]

    def replaced(self, text: str) -> str:
        """Return a text after these steps."""
        from tokenizers import normalizers

        return str(normalizers.Sequence(self.charsmap_steps()).normalize_str(text))

    def space_steps(self) -> list[Normalizer]:
        """Return the steps that make :data:`SPACE` of spaces."""
        from tokenizers import Regex, normalizers

        if not self.collapses_spaces:
            return [normalizers.Replace(" ", SPACE)]
        return [
            normalizers.Replace(Regex(r"\A +| +\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(" ", SPACE),
            normalizers.Replace(Regex(rf"{SPACE}+\z"), ""),
        ]

    def unknown_steps(self, words: Collection[str], *, marks: tuple[str, str]) -> list[Normalizer]:
        """Return the step that makes one unknown character of several that no piece has: SentencePiece takes them as one.

        Args:
            words: Strings of such characters that are known nevertheless, if nothing of their kind is next to them.
            marks: Characters around what is left alone at the beginning of a text.
        """
        from tokenizers import Regex, normalizers

        strange = f"[^{_ranges(self.characters.union(marks))}]"
        marked = f"(?![^{marks[1]}]{{0,{MOST_MARKED}}}{marks[1]})"
        several = sorted((word for word in words if len(word) > 1), key=len, reverse=True)
        listed = "|".join("".join(map(escaped, word)) for word in several)
        known = f"(?!(?:{listed})(?!{strange}))" if several else ""
        return [normalizers.Replace(Regex(f"(?<!{strange}){marked}{known}{strange}{{2,}}"), ABSENT)]


def escaped(character: str) -> str:
    """Return a character in the form that a regular expression takes."""
    return f"\\x{{{ord(character):x}}}"


def _ranges(characters: Iterable[str]) -> str:
    """Return the characters in the form that stands between the brackets of a regular expression."""
    found: list[list[int]] = []
    for number in sorted(set(map(ord, characters))):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return "".join(f"{escaped(chr(first))}-{escaped(chr(last))}" for first, last in found)
