"""A trial of tuning: the figures of one configuration on a real server."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from serving.configuration import Configuration


@dataclass(frozen=True, kw_only=True)
class LevelSpeed:
    """Speed under the load of a number of clients, each of which waits for its answer before it sends the next request.

    Attributes:
        concurrency: Number of clients.
        throughput: Answered rows per second.
        p50_ms: Median latency of a request of one row, ms.
        p99_ms: 99th percentile of that latency, ms.
        executed_batch: Rows per execution of the model.
    """

    concurrency: int
    throughput: float
    p50_ms: float
    p99_ms: float
    executed_batch: float

    def __str__(self) -> str:
        """Return the speed in words."""
        clients = f"{self.concurrency} client{'s' if self.concurrency > 1 else ''}"
        return f"{self.throughput:.0f} rows/s, p99 {self.p99_ms:.3g} ms at {clients}"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The figures of one configuration, measured once.

    Attributes:
        configuration: The configuration.
        round: 0 for the search, 1 and up for the rounds of the final.
        seconds: Duration of the whole trial.
        failure: Why there are no figures, or None. The fields below are only set without a failure.
        levels: Speeds, one per number of clients, ascending.
        load_seconds: Time from the start of the server to its first answer.
        pss_mib: Proportional set size of the server's processes, MiB.
        peak_rss_mib: Peak resident set size of the server's processes, MiB; shared pages count once per process.
        gpu_memory_mib: Memory in use on the GPUs, MiB; None without a GPU.
    """

    configuration: Configuration
    round: int
    seconds: float
    failure: str | None = None
    levels: tuple[LevelSpeed, ...] = ()
    load_seconds: float | None = None
    pss_mib: float | None = None
    peak_rss_mib: float | None = None
    gpu_memory_mib: float | None = None

    @property
    def memory_mib(self) -> float:
        """Memory that the configuration needs on the device of the model, MiB.

        Raises:
            ValueError: The trial failed.
        """
        on_gpu = self.configuration.device == "gpu" and self.gpu_memory_mib is not None
        memory = self.gpu_memory_mib if on_gpu else self.pss_mib
        if memory is None:
            raise ValueError("a failed trial has no figures")
        return memory

    def to_json(self) -> dict[str, Any]:
        """Return the trial as JSON-ready values."""
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> Trial:
        """Return the trial that :meth:`to_json` wrote.

        Raises:
            TypeError: A field is unknown here or missing.
            KeyError: The configuration or the levels are missing.
        """
        own = {
            "configuration": Configuration(**content["configuration"]),
            "levels": tuple(LevelSpeed(**level) for level in content["levels"]),
        }
        return Trial(**content | own)
