"""Watches the machine during a benchmark: how busy others keep it."""

from __future__ import annotations

from dataclasses import replace

import psutil

from benchmarks import nvml
from benchmarks.environment import Environment, ForeignWork, read_environment, stolen_percent
from serving.reporting import logger

BUSY_PERCENT = 10
"""Share of the processor time that others use. Beyond this, it is reported."""


class MachineWatch:
    """Describes the machine before the models are loaded, and watches it while they are timed."""

    def __init__(self) -> None:
        """Describe the machine, which takes a second, and warn if it is busy."""
        if unreadable := nvml.unreadable():
            logger.warning(unreadable)
        self._environment = read_environment()
        if self._environment.busy_percent > BUSY_PERCENT:
            busy = self._environment.busy_percent
            logger.warning(f"the machine is {busy:.0f} % busy with other work: speeds will be too low")
        self._before = psutil.cpu_times()

    def begin(self, server: psutil.Process | None) -> None:
        """Start to watch. If the root of the server's processes is not visible (None), its work here counts as that of others."""
        self._others = ForeignWork(server)

    def end(self) -> Environment:
        """Return the environment with what others used since :meth:`begin`, and warn if it was much."""
        foreign = self._others.percent()
        if foreign > BUSY_PERCENT:
            logger.warning(f"other processes used {foreign:.0f} % of the processor time meanwhile: speeds are too low")
        stolen = stolen_percent(self._before, psutil.cpu_times())
        return replace(self._environment, others_percent=foreign, stolen_percent=stolen)
