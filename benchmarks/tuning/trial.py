"""A trial of tuning: the figures of one configuration on a real server. Its fields are those of the record."""

from __future__ import annotations

from serving.manifests import LoadRecord, TrialRecord


class LevelSpeed(LoadRecord):
    """Speed under the load of a number of clients, in words too."""

    def __str__(self) -> str:
        """Return the speed in words."""
        clients = f"{self.concurrency} client{'s' if self.concurrency > 1 else ''}"
        return f"{self.throughput:.0f} rows/s, p99 {self.p99_ms:.3g} ms at {clients}"


class Trial(TrialRecord):
    """The figures of one configuration, measured once; without figures if it failed."""

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
