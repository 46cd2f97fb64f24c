"""The configurations of a model that generates that a tuning may try: precision, threads and slots.

The other settings have no meaning for it. One process generates all answers together, each step with all that run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import optuna

from benchmarks.tuning.space import powers
from serving.bundle import Bundle
from serving.configuration import Configuration
from serving.errors import ArtifactError
from serving.generation_plan import SLOTS, make_generation_plan
from serving.options import PackageOptions, Precision
from serving.plan import Plan
from serving.reporting import logger

STEPS_BELOW = 2
"""Slots are tried down to a fourth of what the clients can fill."""


@dataclass(frozen=True, kw_only=True)
class GenerationSpace:
    """All configurations that may be served on this machine.

    Attributes:
        default: How the model is served untuned.
        threads: Threads of one operator.
        slots: Most sequences at a time.
    """

    default: Configuration
    precisions: tuple[Precision, ...]
    threads: tuple[int, ...]
    slots: tuple[int, ...]

    @property
    def _choices(self) -> dict[str, tuple[Any, ...]]:
        return {"precision": self.precisions, "threads": self.threads, "max_batch_size": self.slots}

    def suggest(self, trial: optuna.trial.BaseTrial) -> Configuration:
        """Let Optuna choose: each choice with several allowed values is one parameter, the index of the value."""
        chosen = {
            name: allowed[trial.suggest_int(name, 0, len(allowed) - 1)] if len(allowed) > 1 else allowed[0]
            for name, allowed in self._choices.items()
        }
        return replace(self.default, **chosen)

    def parameters(self, configuration: Configuration) -> dict[str, int]:
        """Return the parameters with which :meth:`suggest` returns ``configuration``.

        Raises:
            ValueError: The configuration is not in this space.
        """
        indices = {name: allowed.index(getattr(configuration, name)) for name, allowed in self._choices.items()}
        return {name: index for name, index in indices.items() if len(self._choices[name]) > 1}

    def configurations(self) -> list[Configuration]:
        """List the whole space."""
        return [
            replace(self.default, precision=precision, threads=threads, max_batch_size=slots)
            for precision in self.precisions
            for threads in self.threads
            for slots in self.slots
        ]

    def grid(self) -> list[Configuration]:
        """List a coarse grid: each precision on all cores and on one, with the default slots and the most."""
        corners = {self.threads[0], self.threads[-1]}, {self.default.max_batch_size, self.slots[-1]}
        return [one for one in self.configurations() if one.threads in corners[0] and one.max_batch_size in corners[1]]


def make_generation_space(
    bundle: Bundle, untuned: Plan, *, capacity: int | None, precisions: tuple[Precision, ...], cores: int, most_clients: int
) -> GenerationSpace:
    """Return what is searched.

    Args:
        bundle: The bundle.
        untuned: How the model is served untuned. Every configuration has its capacity.
        capacity: The capacity that the user has packaged it with; None: packaging chooses it.
        precisions: Variants that may be served.
        cores: Cores of this machine.
        most_clients: Clients of the heaviest load that is measured.
    """
    usual = bundle.generation_task.generation_options
    rows = max(usual.num_beams, usual.num_return_sequences)
    slots = [count for count in slot_choices(rows, most_clients) if _has_room(bundle, untuned, count, capacity)]
    found = tuple(sorted({untuned.max_batch_size, *slots}))
    return GenerationSpace(default=untuned.configuration, precisions=precisions, threads=powers(cores), slots=found)


def slot_choices(rows: int, most_clients: int) -> list[int]:
    """Return numbers of slots worth trying: powers of two around what the clients can fill, and the default.

    Args:
        rows: Sequences that an answer needs.
        most_clients: Clients of the heaviest load.
    """
    full = 1 << (rows * most_clients - 1).bit_length()
    return sorted({SLOTS, *(full >> step for step in range(STEPS_BELOW + 1))} - set(range(rows)))


def _has_room(bundle: Bundle, untuned: Plan, slots: int, capacity: int | None) -> bool:
    """Return whether the memory has room for so many sequences."""
    try:
        sizes = PackageOptions(device="cpu", precision=untuned.precision, max_batch_size=slots, capacity=capacity)
        found = make_generation_plan(bundle, sizes)
    except ArtifactError as error:
        logger.info(f"{slots} sequences at a time are not tried: {error.message}")
        return False
    assert found.capacity is not None and untuned.capacity is not None
    if found.capacity < untuned.capacity:
        logger.info(f"{slots} sequences of {untuned.capacity} tokens are not tried: the cache has no room for them")
    return found.capacity >= untuned.capacity
