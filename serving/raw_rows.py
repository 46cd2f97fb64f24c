"""The rows of raw requests: the strings of each row, in the order of the model's inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from serving.runtime.tasks.base import ServedTask
from serving.runtime.tasks.text_generation import MESSAGES, TextGeneration

NO_ROWS = (str, bytes, bytearray, Mapping)
"""Types that can be iterated over, but whose items are letters, numbers or keys."""


def raw_rows(task: ServedTask, rows: object) -> list[tuple[str, ...]]:
    """Return the strings of each row.

    Args:
        task: The task of the model.
        rows: A sequence of rows; a row is a sequence of texts, one for each input of the model.

    Raises:
        TypeError: They are not rows, such as a text in place of a row.
        ValueError: A row has another number of texts than the model has inputs.
    """
    if isinstance(rows, NO_ROWS) or not isinstance(rows, Iterable):
        raise _no_row(rows)
    return [_row(task, row) for row in rows]


def _row(task: ServedTask, row: object) -> tuple[str, ...]:
    if isinstance(row, NO_ROWS) or not isinstance(row, Iterable):
        raise _no_row(row)
    texts = tuple(row)
    if not all(isinstance(text, str) for text in texts):
        raise _no_row(row)
    inputs = [tensor.name for tensor in task.inputs()]
    is_chat = isinstance(task, TextGeneration) and texts[1:] == (MESSAGES,)
    least = 1 if task.request_rows([("",)])[1] else len(inputs)  # a model of pairs may take a single text, as JSON
    if not is_chat and not least <= len(texts) <= len(inputs):
        raise ValueError(f"a row must have a text for each of {', '.join(inputs)}, not {len(texts)} texts: {texts!r:.80}")
    return texts


def _no_row(found: object) -> TypeError:
    return TypeError(f'rows must be sequences of texts, such as [["a text"]], not {found!r:.80}')
