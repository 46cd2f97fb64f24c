"""Real rows brought to a given number of tokens, to compare with tables that other people publish and to see cost grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tokenizers import Tokenizer

from serving.bundle import Bundle

ROWS = 48
"""So many of each length: they differ less than rows as they are."""


def rows_of_length(
    bundle: Bundle, names: list[str], rows: Sequence[list[str]], length: int, *, count: int = ROWS
) -> list[list[str]]:
    """Rows of ``length`` tokens, or a few less where no cut gives it: each row's text goes on with that of the rows behind it.

    Rows that are short enough to stand in it whole come first, then others, cut. Those that make no sense when they are cut (a mask
    or the whole text gone) are left out.

    Args:
        names: the model's inputs.
        rows: of requests; a task that takes several texts keeps all but the one that may be long.
        length: at most the tokens that the bundle keeps of a row.
    """
    column = _long_column(bundle)
    tokens = _counter(bundle, names)
    special = [token.content for token in Tokenizer.from_file(str(bundle.tokenizer)).get_added_tokens_decoder().values()]
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
    """Tokens of a row, mean."""
    tokens = _counter(bundle, names)
    return sum(map(tokens, rows)) / len(rows)


def _long_column(bundle: Bundle) -> int:
    """The first input whose text may be of any length."""
    task = bundle.task
    long, short = task.long_example(bundle.max_length), task.example
    return next(place for place, tensor in enumerate(task.inputs()) if len(long[tensor.name]) > len(short[tensor.name]))


def _counter(bundle: Bundle, names: list[str]) -> Callable[[Sequence[str]], int]:
    encoder, options = bundle.encoder(names), bundle.task.request_options({})

    def tokens(row: Sequence[str]) -> int:
        return max(len(one.ids) for one in bundle.task.features([[text] for text in row], encoder, options).encodings)

    return tokens


def _or_none(tokens: Callable[[Sequence[str]], int], row: Sequence[str]) -> int | None:
    try:
        return tokens(row)
    except ValueError:  # the task refuses such a row
        return None


def _filler(rows: Sequence[list[str]], place: int, column: int, length: int, special: Sequence[str]) -> Iterator[str]:
    """Texts of the rows behind, until there is enough in any language; without special tokens: a second mask would be more work."""
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
    """The row with as much of ``text`` as ``length`` tokens hold; nothing where that cannot be."""

    def with_text(characters: int) -> list[str]:
        return [*row[:column], text[:characters], *row[column + 1 :]]

    low, high = 0, len(text)
    while low < high:  # the fewest characters that make so many tokens: where rows are cut, more would make no more
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
