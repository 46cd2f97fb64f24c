"""Where to look for the best way of serving a model, and in which order. Pure: nothing is measured here.

A few values of each choice make a space. A coarse grid covers it, and the neighbours of the best found there, one choice one
step up or down, refine it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from serving.configuration import Configuration
from serving.options import MAX_BATCH_SIZE

QUEUE_DELAYS_US = (0, 500, 2000)
MAX_BATCH_SIZES = (16, 64, 256)
GPU_INSTANCES = (1, 2, 4)
Step = TypeVar("Step")


@dataclass(frozen=True, kw_only=True)
class Space:
    """Args:
    device: ``cpu`` or ``gpu``.
    cores: of the machine.
    precisions: those that may be served.
    most_clients: the heaviest load that is measured: no batch grows larger.
    """

    device: str
    cores: int
    precisions: tuple[str, ...]
    most_clients: int

    @property
    def instances(self) -> tuple[int, ...]:
        """Copies of the model: on a CPU powers of two, one a core, and half as many again for what waits between the steps."""
        if self.device == "gpu":
            return GPU_INSTANCES
        return (*_powers(self.cores), self.cores + max(1, self.cores // 2))

    @property
    def threads(self) -> tuple[int, ...]:
        """Threads of a copy."""
        return (1,) if self.device == "gpu" else _powers(self.cores)

    @property
    def max_batch_sizes(self) -> tuple[int, ...]:
        """The usual one, smaller ones that the load can fill, and larger ones where it fills that."""
        smaller = tuple(size for size in MAX_BATCH_SIZES if size < min(MAX_BATCH_SIZE, self.most_clients))
        larger = tuple(size for size in MAX_BATCH_SIZES if size > MAX_BATCH_SIZE and self.most_clients > MAX_BATCH_SIZE)
        return (*smaller, MAX_BATCH_SIZE, *larger)

    def __contains__(self, configuration: Configuration) -> bool:
        crowded = configuration.instances * configuration.threads > self.cores
        return (
            configuration.precision in self.precisions
            and configuration.instances in self.instances
            and configuration.threads in self.threads
            and (self.device == "gpu" or not crowded or configuration.threads == 1)
            # an answer that depends on who else is asking is none to choose for its speed
            and not (configuration.batching == "ragged" and configuration.precision == "int8")
        )

    def grid(self) -> list[Configuration]:
        """Each precision with and without batching; on a CPU with a copy on every core, with one on all of them, and half-way."""
        corners = (
            Configuration(
                precision=precision,
                device=self.device,
                batching=batching,
                instances=instances,
                threads=threads,
                max_batch_size=MAX_BATCH_SIZE,
                queue_delay_us=0,
            )
            for batching in ("off", "ragged")
            for instances, threads in self._arrangements()
            for precision in self.precisions
        )
        return [configuration for configuration in corners if configuration in self]

    def _arrangements(self) -> Iterable[tuple[int, int]]:
        """Instances and threads of each that use every core, or nearly so."""
        if self.device == "gpu":
            return [(1, 1)]
        copies = max(step for step in self.threads if step * step <= self.cores)
        threads = max(step for step in self.threads if step * copies <= self.cores)
        return dict.fromkeys([(self.cores, 1), (1, self.cores), (copies, threads)])

    def neighbours(self, centre: Configuration) -> list[Configuration]:
        """Configurations that differ in one choice by one step, those first that tend to matter most."""
        return list(dict.fromkeys(one for one in self._steps(centre) if one in self and one != centre))

    def _steps(self, centre: Configuration) -> Iterator[Configuration]:
        for instances in _beside(self.instances, centre.instances):
            yield replace(centre, instances=instances)
        for threads in _beside(self.threads, centre.threads):
            yield replace(centre, threads=threads)
        if centre.batching == "ragged":
            for delay in _beside(QUEUE_DELAYS_US, centre.queue_delay_us):
                yield replace(centre, queue_delay_us=delay)
            for size in _beside(self.max_batch_sizes, centre.max_batch_size):
                yield replace(centre, max_batch_size=size)
            yield replace(centre, batching="off", queue_delay_us=0, max_batch_size=MAX_BATCH_SIZE)
        else:
            yield replace(centre, batching="ragged")
        for precision in _beside(self.precisions, centre.precision):
            yield replace(centre, precision=precision)


def _powers(most: int) -> tuple[int, ...]:
    """1, 2, 4 … below ``most``, and ``most``."""
    return (*(1 << exponent for exponent in range(most.bit_length()) if 1 << exponent < most), most)


def _beside(steps: tuple[Step, ...], step: Step) -> Iterable[Step]:
    """The one after and the one before; those of a value that is no step are unknown."""
    if step not in steps:
        return ()
    place = steps.index(step)
    return (*steps[place + 1 : place + 2], *steps[max(0, place - 1) : place])
