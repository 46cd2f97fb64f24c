"""Reads and writes lists of strings that travel as JSON: in a tensor, in a request parameter, in an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..types import parse_client_json, require_text


def read_strings(text: str, name: str) -> list[str]:
    """Read a JSON list of strings that is not empty.

    Args:
        text: The JSON.
        name: What it is called in messages.

    Raises:
        ValueError: It is not such a list.
    """
    found = _read(text, name)
    if not found:
        raise ValueError(f"{name} is an empty list: one is needed at least")
    return found


def read_option(text: str, name: str) -> list[str]:
    """Read the names in a request parameter: a JSON list of strings, or strings separated by commas.

    Raises:
        ValueError: It begins like a JSON list and is not one.
    """
    if not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",")]
    try:
        return _read(text, name)
    except ValueError:
        wanted = "must be a JSON list of strings, or names with commas between"
        raise ValueError(f"option {name} {wanted}, not {text[:80]!r}") from None


def _read(text: str, name: str) -> list[str]:
    try:
        found = parse_client_json(name, text)
    except ValueError as error:
        raise ValueError(f"{error}: {text[:80]!r}") from None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"{name} must be a JSON list of strings, not {text[:80]!r}")
    for one in found:
        require_text(name, one)
    return found


def write_strings(values: object) -> str:
    """Write a list of strings as JSON; the inverse of :func:`read_strings`.

    Raises:
        TypeError: The value is not a list of strings.
    """
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"must be a list of strings, not {values!r:.80}")
    return json.dumps(values, ensure_ascii=False)


def json_column(values: Sequence[object]) -> npt.NDArray[np.object_]:
    """Write one JSON-ready value per request row.

    Returns:
        BYTES ``[request rows, 1]``.
    """
    column = np.empty((len(values), 1), dtype=np.object_)
    column[:, 0] = [json.dumps(value, ensure_ascii=False).encode() for value in values]
    return column
