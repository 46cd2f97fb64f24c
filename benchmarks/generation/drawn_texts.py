"""Draws the texts that a model which generates is asked about."""

from __future__ import annotations

import random
from collections.abc import Sequence

from benchmarks.generation.tokenized_texts import TokenizedTexts
from export.data import sample_indices
from serving.reporting import logger

ROWS_OF_LENGTH = 48


def draw_texts(texts: TokenizedTexts, rows: Sequence[str], *, count: int, seed: int, room: int) -> list[int]:
    """Draw rows at random from those that fit.

    Args:
        texts: Tokenizes them.
        rows: Text of each row.
        count: Most rows.
        seed: Seed.
        room: Most tokens of a row.

    Returns:
        Their places.
    """
    fitting = [place for place, text in enumerate(rows) if text and len(texts.tokens(text)) <= room]
    if left_out := len(rows) - len(fitting):
        logger.info(f"{left_out} of {len(rows)} rows are left out: they are empty, or longer than {room} tokens")
    drawn = [fitting[index] for index in sample_indices(len(fitting), count, seed)]
    random.Random(seed).shuffle(drawn)  # noqa: S311 - nothing secret
    return drawn


def texts_by_length(
    texts: TokenizedTexts, rows: Sequence[str], lengths: Sequence[int], *, room: int, least: int
) -> dict[int, list[str]]:
    """Make texts of each length. A length that the rows cannot be brought to is reported and left out.

    Args:
        texts: Tokenizes them.
        rows: The texts to make them of.
        lengths: Tokens.
        room: Most tokens of a text.
        least: Fewer texts of a length are of no use.
    """
    found: dict[int, list[str]] = {}
    for length in lengths:
        if length > room:
            logger.warning(f"length {length} is left out: a prompt has room for {room} tokens")
            continue
        made = texts.of_length(rows, length, count=ROWS_OF_LENGTH)
        if len(made) < least:
            logger.warning(f"length {length} is left out: of the rows no more than {len(made)} can be brought to it")
            continue
        found[length] = made
    return found
