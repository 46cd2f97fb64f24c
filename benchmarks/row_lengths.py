"""Real rows of a given number of tokens, to compare with published tables and to show how cost grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from serving.bundle import Bundle

ROWS = 48
"""Number of rows of each length: they vary less than rows as they are."""


def rows_of_length(
    bundle: Bundle, names: list[str], rows: Sequence[list[str]], length: int, *, count: int = ROWS
) -> list[list[str]]:
    """Make rows of ``length`` tokens, or a few less where no truncation gives it, by appending the texts of the following rows.

    Rows that fit completely come first, then truncated rows. Rows that are invalid after truncation (without a mask, or without any
    text) are left out. A task with several texts keeps all but the one that may be long. There are at most ``count`` rows.
    """
    long, short = bundle.encoder_task.long_example(bundle.max_length), bundle.encoder_task.example
    inputs = [tensor.name for tensor in bundle.encoder_task.inputs()]
    column = next(place for place, name in enumerate(inputs) if len(long[name]) > len(short[name]))  # whose text may be long
    tokens = _counter(bundle, names)
    special = [token.content for token in bundle.encoder(names).tokenizer.get_added_tokens_decoder().values()]
    own = [_or_none(tokens, row) for row in rows]
    whole = [place for place, found in enumerate(own) if found is not None and found <= length]
    cut = [place for place, found in enumerate(own) if found is not None and found > length]
    made: list[list[str]] = []
    for place in [*whole, *cut]:
        if len(made) == count:
            break
        text = " ".join([rows[place][column], *_filler(rows, place, column, length, special)])
        made += _cut(rows[place], column, text, length, tokens)
    return made


def mean_tokens(bundle: Bundle, names: list[str], rows: Sequence[list[str]]) -> float:
    """Compute the mean number of tokens of the rows."""
    tokens = _counter(bundle, names)
    return sum(map(tokens, rows)) / len(rows)


def _counter(bundle: Bundle, names: list[str]) -> Callable[[Sequence[str]], int]:
    encoder = bundle.encoder(names)

    def tokens(row: Sequence[str]) -> int:
        return max(len(one.ids) for one in bundle.encoder_task.preprocess([[text] for text in row], encoder).encodings)

    return tokens


def _or_none(tokens: Callable[[Sequence[str]], int], row: Sequence[str]) -> int | None:
    try:
        return tokens(row)
    except ValueError:  # the task does not accept such a row
        return None


def _filler(rows: Sequence[list[str]], place: int, column: int, length: int, special: Sequence[str]) -> Iterator[str]:
    """Texts of the following rows until they are long enough in any language, without special tokens such as a second mask."""
    characters = 0
    for step in range(1, len(rows) * length):
        text = rows[(place + step) % len(rows)][column]
        for token in special:
            text = text.replace(token, " ")
        yield text
        characters += len(text)
        if characters > 16 * length and step > 1:
            return


def _cut(row: list[str], column: int, text: str, length: int, tokens: Callable[[Sequence[str]], int]) -> list[list[str]]:
    """The row with as much of ``text`` as ``length`` tokens hold; empty if there is no such row."""

    def with_text(characters: int) -> list[str]:
        return [*row[:column], text[:characters], *row[column + 1 :]]

    low, high = 0, len(text)
    while low < high:  # the fewest characters with that many tokens: beyond the maximum length, more make no more tokens
        middle = (low + high) // 2
        found = _or_none(tokens, with_text(middle))
        if found is None or found < length:
            low = middle + 1
        else:
            high = middle
    for made in (with_text(low), with_text(low - 1)):  # one character may make two tokens
        found = _or_none(tokens, made)
        if found is not None and length - max(2, length // 10) <= found <= length:
            return [made]
    return []
