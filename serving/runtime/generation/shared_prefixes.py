"""How many of their first tokens rows of a cache have in common, so that a beam that splits is not copied whole."""

from __future__ import annotations

import numpy as np


class SharedPrefixes:
    """Remembers which rows were copied from each other. A row only grows, so what was copied once stays equal.

    Args:
        slots: Rows of the cache.
    """

    def __init__(self, slots: int) -> None:
        self._common = np.zeros((slots, slots), dtype=np.int64)

    def forget(self, slot: int) -> None:
        """Note that another row begins in a slot."""
        self._common[slot] = self._common[:, slot] = 0

    def copied(self, source: int, target: int, length: int) -> int:
        """Note that the first ``length`` tokens of a row are copied to another one.

        Args:
            source: Slot of the row.
            target: Another slot.
            length: Tokens of the row.

        Returns:
            The number of tokens that both had in common already: only those behind need to be copied.
        """
        before = int(self._common[source, target])
        self._common[target] = self._common[:, target] = self._common[source]
        self._common[source, target] = self._common[target, source] = length
        return min(before, length)
