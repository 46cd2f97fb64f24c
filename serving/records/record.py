"""A row of a file, its place, and what messages show of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from serving.errors import DataError

LocatedRow = tuple[str, Mapping[str, Any]]
"""The place of a row, such as ``line 12``, and its values by column."""


def first_repeated(names: Iterable[str]) -> str | None:
    """Return the first name that another one before it equals; None if all are different."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def parse_json(text: str) -> Any:
    """Parse JSON in which no object has a key twice.

    Raises:
        ValueError: It is not JSON, is nested too deeply, or has a key twice, of which Python would keep the last.
    """
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {first_repeated(key for key, _ in pairs)!r} is there twice")
    return found


def shown(value: object) -> str:
    """Return the ``repr`` of ``value`` for a message, cut after 200 characters."""
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"


def checked_text(value: object, column: str, place: str, row: Mapping[str, object]) -> str:
    """Return ``value`` if it is text that UTF-8 can encode.

    Args:
        value: The value of a cell.
        column: The column of the cell, for the message.
        place: The file and line of the row, for the message.
        row: The whole row, for the message.

    Raises:
        DataError: The value is not a string, or holds half of a surrogate pair, as broken JSON escapes do.
    """
    if not isinstance(value, str):
        raise DataError(f"{place}: column {column!r} holds {type(value).__name__}, not text: {shown(dict(row))}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{place}: column {column!r} holds half of a surrogate pair, which UTF-8 cannot encode: {shown(dict(row))}")
    return value
