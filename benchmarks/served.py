"""The served ensemble: its package, its speed under load, and the quality of its answers."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.answers import joined
from benchmarks.energy import EnergyMeter
from benchmarks.inputs import BenchmarkInputs
from benchmarks.load import LoadFound, LoadOptions, run_load
from benchmarks.measurements import Load, LoadMode, Served
from benchmarks.model_runs import planned_loads
from benchmarks.processes import MIB, MemoryMeter
from benchmarks.quality import evaluate
from benchmarks.report import flatten
from benchmarks.served_package import ServedPackage, check_process, package_settings
from benchmarks.speed import Spans, closed_loop, over_rounds
from benchmarks.steps import ENSEMBLE, Counts, counts_between, split, total
from export import graph
from serving.access import ClientAccess
from serving.access_options import AccessOptions
from serving.client import TritonPipeline
from serving.errors import ServerError
from serving.failures import FailureTranslator, Retry
from serving.model_names import callable_models
from serving.options import ServerAddress
from serving.runtime.types import Arrays, Tensor
from serving.server_record import find_running

GPU_MEMORY = "nv_gpu_memory_used_bytes"

IN_FLIGHT = 16
"""Labelled rows in flight: quality is measured under load, as in production."""
OPEN_REQUESTS = 20
"""Least expected number of requests of an open loop in one slice of time."""
ANSWERS_PER_CLIENT = 2
"""Least number of answers per client in one slice of time: many clients of a slow model may wait longer than a slice."""


class ServerConnection:
    """A connection to a running server, for everything but load."""

    def __init__(self, address: ServerAddress, name: str, access: AccessOptions | None = None) -> None:
        """Connect.

        Raises:
            RequestError: The server refused the API key, the connection or a question.
            ServerError: Nothing answers, or the server does not serve the ensemble.
        """
        import tritonclient.grpc as triton

        self._name, self.address, self.access = name, address, access or AccessOptions()
        known = ClientAccess(**asdict(self.access))
        self._headers = known.headers("grpc")
        self._client = triton.InferenceServerClient(address.grpc_url, **({} if known.tls is None else known.tls.grpc_arguments))
        self._failures = FailureTranslator(url=address.grpc_url, protocol="grpc", has_tls=known.tls is not None)
        try:
            with self._translated():
                self._read_models()
        except BaseException:
            self._client.close()
            raise

    def _read_models(self) -> None:
        """Read what is served, and by which server."""
        name, address = self._name, self.address
        ready = self._client.is_server_ready(headers=self._headers, client_timeout=10) and self._client.is_model_ready(
            name, headers=self._headers, client_timeout=10
        )
        if not ready:
            served = callable_models(
                model.name for model in self._client.get_inference_statistics(headers=self._headers).model_stats
            )
            raise ServerError(
                f"{name} is not served at {address.grpc_url}; it serves: {', '.join(served) or 'no model'}",
                hint=f"start one on the right repository: tritonize serve --repository …, with {name} in it",
            )
        metadata = self._client.get_server_metadata(headers=self._headers)
        self.version = f"{metadata.name} {metadata.version}"
        steps = self._client.get_model_config(name, headers=self._headers).config.ensemble_scheduling.step
        self.models = [name, *(step.model_name for step in steps)]

    def url(self, protocol: str) -> str:
        """``host:port`` of ``grpc`` or ``http``, without a scheme."""
        return self.address.grpc_url if protocol == "grpc" else self.address.base_url.removeprefix("http://")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def statistics(self) -> dict[str, Any]:
        """Read Triton's statistics of the ensemble and of every step, by the model's name.

        Raises:
            RequestError: The server refused the question.
            ServerError: Nothing answers any more.
        """
        with self._translated():
            read = self._client.get_inference_statistics
            return {model: read(model, headers=self._headers).model_stats[0] for model in self.models}

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Tell why the server did not answer.

        Raises:
            RequestError: It refused the API key, the connection or a question.
            ServerError: There is none.
        """
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            failure = self._failures.translate(error)
            if failure.retry is Retry.UNREACHABLE or failure.error.status == "DEADLINE_EXCEEDED":
                raise ServerError(
                    f"no server answers at {self.address.grpc_url}",
                    hint="start one with: tritonize serve; or measure without one: --in-process",
                ) from error
            raise failure.error from error

    def ask(self, rows: list[list[str]], options: Mapping[str, Any]) -> Arrays:
        """Ask the server, one request per row, :data:`IN_FLIGHT` at a time.

        Returns:
            Answers in the order of the rows, tensors by name.

        Raises:
            RequestError: The server refused a row.
        """
        with TritonPipeline(self._name, url=self.address.grpc_url, concurrency=IN_FLIGHT, **asdict(self.access)) as pipeline:
            return joined(pipeline.tensors(rows, **options))

    def gpu_memory_mib(self) -> float | None:
        """Read the GPU memory in use on the server's machine from its metrics, MiB; None without a GPU or metrics."""
        try:
            with urllib.request.urlopen(self.address.metrics_url, timeout=5) as answer:  # noqa: S310 - always http
                text = answer.read().decode()
        except (urllib.error.URLError, TimeoutError):
            return None
        families = text_string_to_metric_families(text)
        used = [sample.value for family in families if family.name == GPU_MEMORY for sample in family.samples]
        return sum(used) / MIB if used else None


@dataclass(frozen=True, kw_only=True)
class Target:
    """The server to measure, connected and checked, and the load generator."""

    server: ServerConnection
    package: ServedPackage
    load_generator: Path


@dataclass(kw_only=True)
class Clients:
    """A load on the server that is measured round by round.

    Attributes:
        mode: The load; an open loop's share becomes a rate in the first round.
        closed: Closed loops that have been measured before in each round; the best one's throughput gives an open loop its rate.
        least_seconds: Least duration of a slice, for every client to get answers.
        memory: Meter of the server's memory; None if its process is not visible.
        slices: What the load generator measured, by round.
        counts: Triton's counts of each step, by round.
        joules: Energy of the machine, by round; empty without counters.
    """

    target: Target
    inputs: tuple[Tensor, ...]
    mode: LoadMode
    closed: Sequence[Clients] = ()
    least_seconds: float
    memory: MemoryMeter | None
    energy: EnergyMeter
    slices: list[LoadFound] = field(default_factory=list)
    counts: list[dict[str, Counts]] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)

    @property
    def length(self) -> int | None:
        """Tokens of the rows; None: as they are."""
        return self.mode.length

    def measure(self, rows: list[list[str]], seconds: float) -> None:
        """Measure the next round's slice."""
        if self.mode.share is not None and self.mode.rate is None:
            best = max(closed_loop(found.spans).throughput for way in self.closed for found in way.slices)
            self.mode = replace(self.mode, rate=float(f"{self.mode.share * best:.3g}"))
        if self.mode.rate is not None:
            seconds = max(seconds, OPEN_REQUESTS / self.mode.rate)
        server, name = self.target.server, self.target.package.name
        options = LoadOptions(
            **asdict(self.mode),
            model=name,
            url=server.url(self.mode.protocol),
            duration=max(seconds, self.least_seconds),
            access=server.access,
        )
        with self.memory or nullcontext():
            before, used = server.statistics(), self.energy.read()
            self.slices.append(run_load(self.target.load_generator, options, self.inputs, rows))
            used_after = self.energy.read()
            self.counts.append(counts_between(before, server.statistics(), name))
        if used is not None and used_after is not None:
            self.joules.append(used_after - used)

    def load(self) -> Load:
        """Combine all rounds."""
        counted = {step: total(counts[step] for counts in self.counts) for step in self.counts[0]}
        steps = {step: counts.step() for step, counts in counted.items() if step != ENSEMBLE}
        speed = over_rounds([closed_loop(found.spans) for found in self.slices])
        requests = [found.requests for found in self.slices]
        delayed, mean_us, client_us = (
            fmean((getattr(found, mean) for found in self.slices), requests) for mean in ("delayed", "mean_us", "client_us")
        )
        return Load(
            **asdict(self.mode),
            delayed=delayed,
            speed=speed,
            executed_batch=steps["model"].executed_batch,
            steps=steps,
            split=split(counted, mean_us=mean_us, client_us=client_us),
            joules_per_row=sum(self.joules) / counted[ENSEMBLE].rows if len(self.joules) == len(self.slices) else None,
        )

    def rounds(self) -> Iterator[dict[str, float]]:
        """Yield the figures that each round has of its own."""
        for found, counts in zip(self.slices, self.counts, strict=True):
            steps = {step: asdict(counted.step()) for step, counted in counts.items() if step != ENSEMBLE}
            speed = asdict(closed_loop(found.spans).speed())
            parts = asdict(split(counts, mean_us=found.mean_us, client_us=found.client_us))
            yield dict(flatten("", {**speed, "executed_batch": steps["model"]["executed_batch"], "split": parts, **steps}))


class UnderLoad:
    """The server's part of a benchmark: its answers to the labelled rows, and its loads.

    Attributes:
        process: The server's process; None if it is not visible from here.
    """

    def __init__(self, target: Target, inputs: BenchmarkInputs, energy: EnergyMeter) -> None:
        """Ask the server for the labelled rows and plan the loads.

        Raises:
            RequestError: The server refused a row.
        """
        self._target, self._inputs = target, inputs
        self.process = check_process(target.server.address, target.package)
        self._memory = MemoryMeter(self.process) if self.process is not None else None
        asked = time.perf_counter()
        with self._memory or nullcontext():
            self._answers = target.server.ask(inputs.rows.labelled, inputs.task.evaluation_options)
        seconds_per_row = (time.perf_counter() - asked) / len(inputs.rows.labelled)
        self.ways: list[Clients] = []
        for mode in planned_loads(inputs):
            same_protocol = [way for way in self.ways if way.mode.protocol == mode.protocol]
            clients = Clients(
                target=target,
                inputs=inputs.bundle.task.inputs(),
                mode=mode,
                closed=[way for way in same_protocol if way.mode.concurrency and way.length is None],
                least_seconds=ANSWERS_PER_CLIENT * (mode.concurrency or 1) * seconds_per_row,
                memory=self._memory,
                energy=energy,
            )
            self.ways.append(clients)

    def found(self, original: Arrays) -> Served:
        """Collect what was measured."""
        server, package = self._target.server, self._target.package
        return Served(
            precision=package.precision,
            package=package_settings(package),
            sha256=package.sha256,
            server=server.version,
            loads=[way.load() for way in self.ways],
            quality=evaluate(self._inputs.task, self._inputs.rows, self._answers, original),
            load_seconds=load_seconds(server.address, self.process),
            peak_rss_mib=self._memory.peak_rss_mib if self._memory else None,
            pss_mib=self._memory.pss_mib if self._memory else None,
            gpu_memory_mib=server.gpu_memory_mib(),
            size_mib=graph.size(package.file) / MIB,
        )

    def rounds(self) -> list[dict[str, float]]:
        """The figures that each round has of its own, by name."""
        return [
            {f"{self._name(way)}.{key}": value for way, own in zip(self.ways, found, strict=True) for key, value in own.items()}
            for found in zip(*(way.rounds() for way in self.ways), strict=True)
        ]

    def samples(self) -> dict[str, Spans]:
        """The spans behind the speeds, by the names of :data:`benchmarks.samples.Samples`."""
        return {f"{self._name(way)}.r{index + 1}": found.spans for way in self.ways for index, found in enumerate(way.slices)}

    def _name(self, way: Clients) -> str:
        return f"served.{self._target.package.precision}.{way.mode.name}"


def load_seconds(address: ServerAddress, process: psutil.Process | None) -> float | None:
    """Return the load time that the supervisor recorded, if it runs this very server."""
    running = find_running(address.http_port)
    if running is None or process is None or running.pid not in {process.pid, *(parent.pid for parent in process.parents())}:
        return None
    return running.ready_seconds
