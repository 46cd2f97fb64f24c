"""Cuts texts that are much longer than what a model takes before they are tokenized: the tokens that are kept stay the same.

A tokenizer does its work word by word: it splits a text, and the tokens of one part depend on nothing that follows it. Where its
configuration proves that (see :func:`_boundary`), a prefix of the text that ends before a space, and has more tokens than are kept,
has the same first tokens, with the same offsets, as the whole text. All but the last token of such a prefix are certain: where an
added token takes the white space behind it (``rstrip``), the offsets of the last one are not.

Where nothing is proven, the whole text is tokenized.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding, Tokenizer

from .types import Text, TextTooLongError

FIRST_PREFIX = 2048
"""Characters of the first prefix at least. Most rows are shorter, and cost one comparison."""
CHARACTERS_PER_TOKEN = 8
"""Characters of the first prefix for each token that is kept: English has 4 to 5 for each token, few texts have 8."""
ROWS = 4
"""Texts of the largest length for which all rows together have the time."""
GROWTH = 4
"""Factor between the lengths of two prefixes that are tried."""

_JOINED = "\u0d4e\u0e33\u0eb3\uff9e\uff9f\U00010000-\U0010ffff"
"""Letters that may form one grapheme with a space beside them, which some normalizers look at as a whole; and rare scripts."""
_FIRM = rf"(?:[!-~]|(?![{_JOINED}])\w)"
_WORD_END = rf"{_FIRM}(?=[{{}}](?:[!-~ \n]|(?![{_JOINED}])\w))"
"""Pattern of the last character of a word, where white space follows, and no combining mark behind that."""
_IDEOGRAPH = "[\u4e00-\u9fa5]"
"""Ideographs of the first version of Unicode: all others are unassigned to some table or other."""
_BETWEEN_IDEOGRAPHS = rf"{_IDEOGRAPH}(?={_IDEOGRAPH})"
_BEFORE_CJK_PUNCTUATION = rf"{_IDEOGRAPH}(?=[。，、！？；：])"
_NEAR = 256
"""Characters at the end of a prefix in which a boundary is looked for first."""
_TAIL = 16
"""Characters in front of a boundary that are normalized to see that a word ends there indeed."""
_UNBOUNDED = 2**60
"""Stands for the tokens of a text of which only a prefix is known."""


@dataclass(frozen=True)
class _Part:
    """A text, or the prefix of one that is tried."""

    text: str
    whole: bool


class TextCutter:
    """Cuts the texts of one tokenizer. All methods need its truncation to be off.

    Args:
        tokenizer: The tokenizer.
        most_characters: Characters of the longest text, or prefix of a text, that is tokenized. None: no limit.
        first_prefix: Characters of the first prefix at least.
        characters_per_token: Characters of the first prefix for each token that is kept.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        most_characters: int | None = None,
        first_prefix: int = FIRST_PREFIX,
        characters_per_token: int = CHARACTERS_PER_TOKEN,
    ) -> None:
        self._tokenizer = tokenizer
        self._normalizer = tokenizer.normalizer
        self._most = most_characters
        self._first_prefix = first_prefix
        self._characters_per_token = characters_per_token
        boundary = _boundary(tokenizer)
        self._boundary = None if boundary is None else re.compile(boundary)

    @property
    def can_cut(self) -> bool:
        """Return whether the configuration of the tokenizer proves that its texts can be cut."""
        return self._boundary is not None

    def first_size(self, tokens: int) -> int:
        """Return the characters of the first prefix that is tried where so many tokens are kept. Shorter text is not cut."""
        return max(self._first_prefix, self._characters_per_token * tokens)

    def cut(self, texts: Sequence[Text], *, max_length: int, strategy: str, special_tokens: bool = True) -> Sequence[Text]:
        """Cut the rows that are too long, where the tokens that are kept of them are the same.

        Args:
            texts: One text, or pair of texts, per row.
            max_length: Tokens kept of a row, special tokens included.
            strategy: Which text of a pair is truncated: ``longest_first``, ``only_first`` or ``only_second``.
            special_tokens: Whether a row has special tokens.

        Raises:
            TextTooLongError: A text is longer than ``most_characters``, and no prefix of that length decides which tokens are kept.
        """
        size = self.first_size(max_length)
        waiting = [row for row, text in enumerate(texts) if _longest(text) > size]
        if not waiting:
            return texts
        found = list(texts)
        while waiting:
            parts = {row: [self._prefix(text, size) for text in _texts(texts[row])] for row in waiting}
            if size > self.first_size(max_length):
                self.require_few((part.text for row in parts.values() for part in row), len(texts) * self.first_size(max_length))
            counts = self._counts(part for row in parts.values() if not all(part.whole for part in row) for part in row)
            waiting = []
            for row, tried in parts.items():
                room = room_for(self._tokenizer, max_length, pair=len(tried) > 1, special_tokens=special_tokens)
                if all(part.whole for part in tried) or _is_decided(tried, [counts[part.text] for part in tried], room, strategy):
                    found[row] = (tried[0].text, tried[1].text) if len(tried) > 1 else tried[0].text
                elif size == self._limited(size + 1, max_length):
                    raise TextTooLongError(_refusal(row, _longest(texts[row]), size))
                else:
                    waiting.append(row)
            size = self._limited(GROWTH * size, max_length)
        return found

    def count(self, text: str, enough: int, *, row: int) -> tuple[int, bool]:
        """Count the tokens of a text without special tokens, or of a prefix that has more than enough.

        Args:
            text: The text.
            enough: The number of tokens beyond which the exact number does not matter.
            row: Number of the row, for messages.

        Returns:
            The number of tokens, and whether these are all tokens of the text.

        Raises:
            TextTooLongError: The text is longer than ``most_characters``, and no prefix of that length has more than enough tokens.
        """
        size = self.first_size(enough)
        while True:
            part = self._prefix(text, size)
            tokens = self._counts([part])[part.text]
            if part.whole or tokens > enough:
                return tokens, part.whole
            if size == self._limited(size + 1, enough):
                raise TextTooLongError(_refusal(row, len(text), size))
            size = self._limited(GROWTH * size, enough)

    def require_few(self, texts: Iterable[str], harmless: int) -> None:
        """Refuse texts that have too many characters together, whatever each has.

        Args:
            texts: The texts, or what is tokenized of them.
            harmless: Number of characters that is always taken.

        Raises:
            TextTooLongError: There are more than :data:`ROWS` times ``most_characters``.
        """
        if self._most is None:
            return
        total, most = sum(map(len, texts)), max(harmless, ROWS * self._most)
        if total > most:
            raise TextTooLongError(
                f"the rows have {total} characters together which have to be tokenized, {most} are taken at most: "
                "send fewer rows at once, or shorter text"
            )

    def _limited(self, size: int, tokens: int) -> int:
        """Return a length of prefixes, reduced to what may be tokenized: never less than the first prefix."""
        return size if self._most is None else min(size, max(self._most, self.first_size(tokens)))

    def _counts(self, parts: Iterable[_Part]) -> dict[str, int]:
        """Count the tokens of texts, without special tokens."""
        texts = list(dict.fromkeys(part.text for part in parts))
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return {text: len(encoding) for text, encoding in zip(texts, encodings, strict=True)}

    def _prefix(self, text: str, size: int) -> _Part:
        """Cut a text at the last boundary within its first characters. Without one, the prefix is empty."""
        if len(text) <= size:
            return _Part(text, whole=True)
        return _Part(text[: next(self._boundaries(text, size), 0)], whole=False)

    def _boundaries(self, text: str, size: int) -> Iterator[int]:
        """Yield positions up to ``size`` where a text can be cut, last one first: all in its last part, or else all."""
        if self._boundary is None:
            return
        for start in (max(0, size - _NEAR), 0):
            for match in reversed([*self._boundary.finditer(text, start, size + 2)]):
                if match.end() <= size and self._is_word_end(text, match.end()):
                    yield match.end()

    def _is_word_end(self, text: str, end: int) -> bool:
        """Return whether text that ends here does so in a word after normalization too."""
        if self._normalizer is None or text[end] not in " \n":
            return True
        normal: str = self._normalizer.normalize_str(text[max(0, end - _TAIL) : end])
        return bool(normal) and normal[-1] != _META and not normal[-1].isspace()


def room_for(tokenizer: Tokenizer, max_length: int, *, pair: bool, special_tokens: bool = True) -> int:
    """Return the tokens of text that a row has room for, beside its special tokens if it has them."""
    special: int = tokenizer.num_special_tokens_to_add(pair) if special_tokens else 0
    return max(0, max_length - special)


def kept_tokens(first: int, second: int, room: int, strategy: str) -> tuple[int, int]:
    """Return how many tokens the ``tokenizers`` library keeps of the two texts of a pair.

    Args:
        first: Tokens of the first text.
        second: Tokens of the second text.
        room: Tokens kept of both.
        strategy: ``longest_first``, ``only_first`` or ``only_second``.

    Returns:
        The tokens of each. 0 of a text that has some: the library refuses the pair.
    """
    if first + second <= room:
        return first, second
    if strategy == "only_first":
        return max(0, room - second), second
    if strategy == "only_second":
        return first, max(0, room - first)
    shorter = min(first, second)
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room // 2 + room % 2
    return (longer, shorter) if first > second else (shorter, longer)


def without_overflow(encoding: Encoding, length: int, *, direction: str) -> Encoding:
    """Truncate an encoding that has no overflow; return an encoding that has none either.

    Truncated in the other direction to two parts, of which the second has the tokens that are kept, that part is what overflows.

    Args:
        encoding: The encoding.
        length: Number of tokens kept.
        direction: ``right`` keeps the first tokens, ``left`` the last.
    """
    if length >= len(encoding):
        return encoding
    rest = len(encoding) - length
    encoding.truncate(max(length, rest), stride=max(0, length - rest), direction="left" if direction == "right" else "right")
    return encoding.overflowing[0]


def _texts(row: Text) -> Sequence[str]:
    return (row,) if isinstance(row, str) else row


def _longest(row: Text) -> int:
    return len(row) if isinstance(row, str) else max(map(len, row))


def _refusal(row: int, length: int, most: int) -> str:
    return (
        f"row {row} has a text of {length} characters, of which the first {most} do not decide what the model gets: send {most} "
        "at most, or the part of the text that matters"
    )


def _is_decided(parts: Sequence[_Part], counts: Sequence[int], room: int, strategy: str) -> bool:
    """Return whether the tokens that are kept of a row are known, however many tokens follow the prefixes.

    Args:
        parts: The one or two texts of the row, at least one of which is a prefix.
        counts: The number of tokens of each.
        room: Tokens kept of the row.
        strategy: Which text of a pair is truncated.
    """
    if len(parts) == 1:
        return counts[0] > room
    if sum(counts) <= room:
        return False
    most = [count if part.whole else _UNBOUNDED for part, count in zip(parts, counts, strict=True)]
    if strategy != "longest_first":
        fixed = 1 if strategy == "only_first" else 0  # the text that is not truncated
        return parts[fixed].whole or counts[fixed] > room  # the row is refused in the latter case
    # what is kept of a text never falls where it grows, and never rises where the other one grows
    kept = kept_tokens(most[0], counts[1], room, strategy)
    if kept != kept_tokens(counts[0], most[1], room, strategy):
        return False
    return all(part.whole or keep < count for part, keep, count in zip(parts, kept, counts, strict=True))


# -- what a tokenizer's configuration proves ----------------------------------------------------------------------------------


def _state(component: Any) -> dict[str, Any]:
    """Read the configuration of a normalizer or a pre-tokenizer."""
    found: dict[str, Any] = {} if component is None else json.loads(component.__getstate__())
    return found


def _flat(state: dict[str, Any], parts: str) -> list[dict[str, Any]]:
    """Return the members of a sequence of components, and of the sequences within it."""
    if state.get("type") != "Sequence":
        return [state] if state else []
    return [one for member in state[parts] for one in _flat(member, parts)]


def _boundary(tokenizer: Tokenizer) -> str | None:
    """Return the pattern of the last character in front of places where texts can be cut. None where nothing is proven."""
    if (tokenizer.truncation or {}).get("direction", "right") != "right":
        return None
    normalizers = _flat(_state(tokenizer.normalizer), "normalizers")
    splits = _flat(_state(tokenizer.pre_tokenizer), "pretokenizers")
    spellings = _spellings_of_space(normalizers)
    if spellings is None or not _splits(splits, spellings, tokenizer):
        return None
    added = tokenizer.get_added_tokens_decoder().values()
    contents = {token.content for token in added}
    if tokenizer.normalizer is not None:
        contents |= {tokenizer.normalizer.normalize_str(token.content) for token in added if token.normalized}
    if any(re.search(rf"[^\s{_META}][\s{_META}]", content) for content in contents):
        return None
    kinds = {normalizer["type"] for normalizer in normalizers}
    whitespace = " \n" if kinds <= _KEEPING_LINES and _split_at_lines(splits) else " "
    found = _WORD_END.format(whitespace)
    plain = all(content.isascii() and not re.search(r"\s", content) for content in contents)
    if plain:
        if splits[:1] == [{"type": "BertPreTokenizer"}] and any(one.get("handle_chinese_chars") for one in normalizers):
            found = f"{_BETWEEN_IDEOGRAPHS}|{found}" if len(normalizers) == 1 else found
        elif splits and splits[0]["type"] == "ByteLevel" and kinds <= {"NFC"}:
            found = f"{_BEFORE_CJK_PUNCTUATION}|{found}"
    return found


_META = "\u2581"
"""Character that stands for a space in the vocabulary of SentencePiece."""
_CHARACTER_BY_CHARACTER = frozenset(
    {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend", "Strip", "StripAccents"}
)
"""Normalizers that change both sides of a boundary as if each stood alone: they look at a grapheme at most, and none lies on both
sides. ``Prepend`` and ``Strip`` change the beginning and the end alone."""
_KEEPING_LINES = frozenset({"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"})
"""Those of them that leave a line feed, or make it a space."""
_AT_SPACES = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
"""Pre-tokenizers that split at white space, and keep none of it."""


def _spellings_of_space(normalizers: Sequence[dict[str, Any]]) -> set[str] | None:
    """Return what the space behind a word may be after normalization. None where a normalizer might look across it."""
    found = {" "}
    for normalizer in normalizers:
        if normalizer["type"] == "Replace":
            kind, pattern = next(iter(normalizer["pattern"].items()))
            content = normalizer["content"]
            if (kind, pattern) in {("String", " "), ("Regex", " {2,}")} and content in {" ", _META}:
                found = {content} if kind == "String" else {*found, content}
            elif kind != "String" or not all(re.fullmatch(rf"[^\s{_META}]+", text) for text in (pattern, content)):
                return None
        elif normalizer["type"] not in _CHARACTER_BY_CHARACTER:
            return None
    return found


def _splits(splits: Sequence[dict[str, Any]], spellings: set[str], tokenizer: Tokenizer) -> bool:
    """Return whether the space behind a word always begins another part for the model, however it is spelled."""
    open_spellings = set(spellings)
    for split in splits:
        kind = split["type"]
        if kind == "Metaspace" and split["replacement"] == _META:
            open_spellings = set() if split["split"] else {_META}
        elif kind in _AT_SPACES or (kind == "ByteLevel" and split["use_regex"]):
            open_spellings -= {" "}
        elif not (kind == "Digits" or (kind == "Punctuation" and split["behavior"] in {"Isolated", "Contiguous", "Removed"})):
            return False
        if not open_spellings:
            return True
        if kind == "ByteLevel":
            return False
    return open_spellings == {_META} and _never_merges_before_space(tokenizer)


def _never_merges_before_space(tokenizer: Tokenizer) -> bool:
    """Return whether the model is a BPE that never merges the end of a word with the space behind it.

    Merges on both sides of the space then have nothing to do with each other.
    """
    model: Any = tokenizer.model
    if type(model).__name__ != "BPE" or model.dropout or model.ignore_merges:
        return False
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    return _META in vocabulary and not any(re.search(f"[^{_META}]{_META}", token) for token in vocabulary)


def _split_at_lines(splits: Sequence[dict[str, Any]]) -> bool:
    """Return whether a line feed separates words as a space does."""
    kinds = [split["type"] for split in splits if split["type"] not in {"Digits", "Punctuation"}]
    return bool(kinds) and (kinds[0] in _AT_SPACES or kinds[0] == "ByteLevel")
