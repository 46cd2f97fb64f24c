"""Finds labels that a data set writes in two ways."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

from serving.errors import DataError
from serving.reporting import logger


def check_spelling(labels: Sequence[str], location: str) -> None:
    """Check that no label is written in two ways, and point out labels that differ only in case.

    Args:
        labels: The different labels.
        location: The source of the rows, for messages.

    Raises:
        DataError: Two labels differ only in spaces or in how characters are encoded.
    """
    if spaces := _spelled_alike(labels, _normalized):
        raise DataError(
            f"{location}: the labels {spaces} differ only in spaces or in how characters are encoded",
            hint="write a label the same way in every row",
        )
    if case := _spelled_alike(labels, str.casefold):
        logger.warning(f"{location}: the labels {case} differ only in upper and lower case, and count as different labels")


def _spelled_alike(labels: Sequence[str], spelling: Callable[[str], str]) -> str:
    """Name two labels that ``spelling`` makes equal; empty if there are none."""
    first: dict[str, str] = {}
    for label in labels:
        other = first.setdefault(spelling(label), label)
        if other != label:
            return f"{other!r} and {label!r}"
    return ""


def _normalized(label: str) -> str:
    """Return the label with single spaces within it, none around it, and composed characters."""
    return " ".join(unicodedata.normalize("NFC", label).split())
