"""One trial of tuning: a way of serving a model, tried on a real server. What it found, as it is written down."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from serving.configuration import Configuration


@dataclass(frozen=True, kw_only=True)
class LevelSpeed:
    """Speed under the load of ``concurrency`` clients, each waiting for its answer before it asks again.

    Args:
        throughput: rows answered per second.
        p50_ms, p99_ms: percentiles of the time a request of one row took, ms.
        executed_batch: rows per execution of the model.
    """

    concurrency: int
    throughput: float
    p50_ms: float
    p99_ms: float
    executed_batch: float

    def __str__(self) -> str:
        clients = f"{self.concurrency} client{'s' if self.concurrency > 1 else ''}"
        return f"{self.throughput:.0f} rows/s, p99 {self.p99_ms:.3g} ms at {clients}"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was found.

    Args:
        round: 0 of the search, from 1 on of the final.
        seconds: how long it took, all of it.
        failure: why it gave no figures; None where it did, and only then is there what follows.
        levels: by number of clients, in rising order.
        load_seconds: from starting the server to its first answer.
        pss_mib, peak_rss_mib: memory of the server's processes, MiB: shared pages split fairly; counted once for each process.
        gpu_memory_mib: in use on the GPUs, MiB; None without one.
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
        """What the configuration costs of the memory the model is in, MiB.

        Raises:
            ValueError: the trial failed.
        """
        on_gpu = self.configuration.device == "gpu" and self.gpu_memory_mib is not None
        memory = self.gpu_memory_mib if on_gpu else self.pss_mib
        if memory is None:
            raise ValueError("a trial that failed has no figures")
        return memory

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> Trial:
        """Inverse of :meth:`to_json`.

        Raises:
            TypeError, KeyError: it is of another tritonize.
        """
        own = {
            "configuration": Configuration(**content["configuration"]),
            "levels": tuple(LevelSpeed(**level) for level in content["levels"]),
        }
        return Trial(**content | own)
