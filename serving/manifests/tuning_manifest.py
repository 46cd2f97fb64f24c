"""What tuning records about a bundle: the trials and the best configuration."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, JsonValue

from serving.configuration import Configuration, has_fused
from serving.manifests.manifest import Manifest, Record


def _require_tunable(configuration: Configuration) -> Configuration:
    """Refuse combinations that tuning never tries and packaging never chooses by itself."""
    generates = configuration.layout == "generation"  # its int8 has scales of single tokens
    if configuration.precision == "int8" and configuration.batching == "ragged" and not generates:
        raise ValueError("int8 is never tuned with ragged batching")
    if configuration.batching == "off" and configuration.queue_delay_us:
        raise ValueError("queue_delay_us is 0 without batching")
    if configuration.layout == "fused" and not has_fused(configuration.device, configuration.batching):
        raise ValueError("the fused layout is for CPUs without batching")
    if configuration.device == "gpu" and configuration.threads != 1:
        raise ValueError("threads is 1 on a GPU")
    return configuration


TunedConfiguration = Annotated[Configuration, AfterValidator(_require_tunable)]


class HardwareRecord(Record):
    """The machine that a tuning was measured on, as :func:`serving.machine.hardware` describes it."""

    cpu: str
    cores: int
    gpus: tuple[str, ...]


class LoadRecord(Record):
    """Speed under the load of ``concurrency`` clients, each of which waits for its answer before it sends the next request.

    Attributes:
        concurrency: Number of clients.
        throughput: Rows per second; of a model that generates: whole answers.
        p50_ms: Median latency of a request, ms.
        p99_ms: 99th percentile of the latency, ms.
        executed_batch: Rows per execution of the model; None for a model that generates: Triton does not see its steps.
        tokens_per_second: Tokens of all answers of a model that generates; None for other models.
    """

    concurrency: int
    throughput: float
    p50_ms: float
    p99_ms: float
    executed_batch: float | None
    tokens_per_second: float | None = None

    def __str__(self) -> str:
        """Return the speed in words."""
        clients = f"{self.concurrency} client{'s' if self.concurrency > 1 else ''}"
        return f"{self.rate}, p99 {self.p99_ms:.3g} ms at {clients}"

    @property
    def rate(self) -> str:
        """The speed that counts, in words."""
        return f"{self.throughput:.0f} rows/s" if self.tokens_per_second is None else f"{self.tokens_per_second:.0f} tokens/s"


class TrialRecord(Record):
    """One configuration that was tried on a server; without figures if it failed.

    Attributes:
        configuration: The configuration.
        round: 0 in the search; from 1 on in the final.
        seconds: Duration of the trial, s.
        failure: Why the configuration could not be served; None if it could.
        levels: Speed by number of clients, rising.
        load_seconds: Time from the start of the server to its first answer, s.
        pss_mib: Memory of the server's processes, shared pages split fairly, MiB.
        peak_rss_mib: Peak memory of the server's processes, MiB.
        gpu_memory_mib: Memory in use on the GPUs, MiB.
    """

    configuration: TunedConfiguration
    round: int
    seconds: float
    failure: str | None = None
    levels: tuple[LoadRecord, ...] = ()
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


class TuningManifest(Manifest):
    """The manifest that ``tritonize tune`` writes.

    Attributes:
        conditions: What decides the result of a trial.
        goal: What else decides the result of the tuning.
        bundle_sha256: SHA-256 of the manifest of the bundle.
        hardware: The machine.
        latency_p99_ms: The 99th percentile of latency that was allowed, ms; None if any was.
        winner: The best configuration.
        speed: Its speed at the best load.
        default: The configuration without tuning.
        ratio: Throughput of the winner over that of the default; None if they cannot be compared.
        trials: All trials in their order.
    """

    artifact_kind: ClassVar[str] = "tuning"
    remedy: ClassVar[str] = "tritonize tune NAME --fresh"

    kind: Literal["tuning"] = "tuning"
    conditions: dict[str, JsonValue]
    goal: dict[str, JsonValue]
    bundle_sha256: str
    hardware: HardwareRecord
    latency_p99_ms: float | None
    winner: TunedConfiguration
    speed: LoadRecord
    default: TunedConfiguration
    ratio: float | None
    trials: tuple[TrialRecord, ...]
