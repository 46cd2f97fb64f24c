"""Inputs that are read one by one, and how they differ from rows and lists of rows.

They are recognized by their methods: neither ``torch`` nor ``datasets`` is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from types import GeneratorType
from typing import cast

AT_ONCE = (str, bytes, bytearray, Mapping, list, tuple, Set)
"""Types of rows and of lists of rows. A set has no order."""


def is_lazy(inputs: object) -> bool:
    """Return whether inputs are read one by one: an iterator, another iterable, or a data set that is read by position."""
    kind = type(inputs)
    return not isinstance(inputs, AT_ONCE) and any(hasattr(kind, name) for name in ("__iter__", "__aiter__", "__getitem__"))


def is_generator_or_torch_dataset(inputs: object) -> bool:
    """Return whether ``transformers`` too reads these inputs one by one."""
    named = [(kind.__module__.partition(".")[0], kind.__name__) for kind in type(inputs).__mro__]
    return isinstance(inputs, GeneratorType) or ("torch", "Dataset") in named


def is_batched(inputs: object) -> bool:
    """Return whether each item is a batch of rows: a ``DataLoader`` of torch gives batches, except with ``batch_size=None``."""
    return hasattr(inputs, "collate_fn") and getattr(inputs, "batch_size", None) is not None


def batch_rows(batch: object) -> list[object]:
    """Return the rows of a batch, which torch collates to a list of texts, or to a dict with a list for each key."""
    if isinstance(batch, Mapping):
        return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    return [*batch] if isinstance(batch, list | tuple) else [batch]


def iterate(inputs: object) -> Iterator[object]:
    """Read inputs one by one, beginning with the first ``next``: a ``DataLoader`` then starts its processes.

    A data set with a length is read by position as far as that, as ``transformers`` does: some give an item at any position.
    """
    if hasattr(type(inputs), "__iter__") or not hasattr(type(inputs), "__len__"):
        yield from cast("Iterable[object]", inputs)
    else:
        dataset = cast("list[object]", inputs)
        yield from (dataset[place] for place in range(len(dataset)))
