"""Who is in which slot of the cache: rows that run are in the first slots, whoever enters and leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from ..types import Integers
from .decoding import Continuation


class CopiesRows(Protocol):
    """A cache whose rows can be copied; see :class:`~.step_graph.StepGraph`."""

    slots: int

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy what the row in slot ``source`` has read, ``length`` tokens, to slot ``target``."""
        ...


Owner = TypeVar("Owner")


@dataclass(eq=False)
class RunningRequest(Generic[Owner]):
    """The rows of one request.

    Attributes:
        request: The request.
        reserved: Most slots that it takes.
        slots: Slot of each of its rows, in the order of its decoding.
    """

    request: Owner
    reserved: int
    slots: list[int]


class SlotTable(Generic[Owner]):
    """Keeps the rows that run in the first slots.

    One more row, whose prompt is being computed, may lie in the slot behind them.

    Args:
        cache: The cache.

    Attributes:
        rows: How many rows run.
        reserved: Slots that the requests which run may take.
        tokens: INT64 ``[slots]``, the token that each row reads next.
        lengths: INT64 ``[slots]``, the tokens that each row has read.
        behind: Tokens that the row behind the others has read; 0: there is none.
    """

    def __init__(self, cache: CopiesRows) -> None:
        self._cache = cache
        self.rows = self.reserved = self.behind = 0
        self.tokens: Integers = np.zeros(cache.slots, dtype=np.int64)
        self.lengths: Integers = np.zeros(cache.slots, dtype=np.int64)
        self._owners: list[RunningRequest[Owner] | None] = [None] * cache.slots
        self._running: list[RunningRequest[Owner]] = []

    def running(self) -> list[RunningRequest[Owner]]:
        """Return the requests that run."""
        return list(self._running)

    def enter(self, request: Owner, reserved: int, length: int) -> RunningRequest[Owner]:
        """Let the row in the slot behind the others run.

        Args:
            request: The request of the row.
            reserved: Most slots that it takes.
            length: Tokens that the row has read.
        """
        entered = RunningRequest(request, reserved, [self.rows])
        self._running.append(entered)
        self._owners[self.rows] = entered
        self.lengths[self.rows] = length
        self.rows += 1
        self.reserved += reserved
        return entered

    def apply(self, changes: Sequence[tuple[RunningRequest[Owner], Continuation | None]]) -> None:
        """Prepare the next step.

        Args:
            changes: How requests go on; None: the request leaves.
        """
        holes: list[int] = []
        for one, continuation in changes:
            if continuation is None:
                self._running.remove(one)
                self.reserved -= one.reserved
                holes += one.slots
            else:
                if continuation.sources is not None:
                    holes += self._rearrange(one, continuation.sources.tolist())
                for slot, token in zip(one.slots, continuation.tokens.tolist(), strict=True):
                    self.tokens[slot] = token
        if holes:
            self._close(set(holes))

    def _rearrange(self, one: RunningRequest[Owner], sources: Sequence[int]) -> list[int]:
        """Give the rows of a request their slots; return those that it leaves.

        The first row that continues another one stays in its slot; only further ones are copied.
        """
        free = [slot for source, slot in enumerate(one.slots) if source not in sources]
        taken: set[int] = set()
        slots = []
        for source in sources:
            slot = one.slots[source]
            if source in taken:
                slot = free.pop() if free else self._next_slot(one)
                self._copy(one.slots[source], slot)
            taken.add(source)
            slots.append(slot)
        one.slots = slots
        return free

    def _next_slot(self, one: RunningRequest[Owner]) -> int:
        slot = self.rows
        if self.behind:
            self._cache.copy(slot, slot + 1, self.behind)
        self._owners[slot] = one
        self.rows += 1
        return slot

    def _close(self, holes: set[int]) -> None:
        """Move the last rows into the slots that were left."""
        before, self.rows = self.rows, self.rows - len(holes)
        moved = [slot for slot in range(self.rows, before) if slot not in holes]
        for target, slot in zip(sorted(hole for hole in holes if hole < self.rows), moved, strict=True):
            self._copy(slot, target)
            self.tokens[target] = self.tokens[slot]
            owner = self._owners[target] = self._owners[slot]
            assert owner is not None
            owner.slots[owner.slots.index(slot)] = target
        if self.behind:
            self._cache.copy(before, self.rows, self.behind)

    def _copy(self, source: int, target: int) -> None:
        self._cache.copy(source, target, int(self.lengths[source]))
        self.lengths[target] = self.lengths[source]
