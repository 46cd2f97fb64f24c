"""The served ensemble: what it is, how fast it answers under load, and whether it answers right."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from benchmarks.answers import joined
from benchmarks.energy import EnergyMeter
from benchmarks.inputs import BenchmarkInputs
from benchmarks.load import LoadFound, LoadOptions, run_load
from benchmarks.machine import MIB, MemoryMeter, listening_process
from benchmarks.quality import evaluate
from benchmarks.report import Load, Served, flatten
from benchmarks.speed import Spans, closed_loop, over_rounds
from benchmarks.steps import ENSEMBLE, Counts, counts_between, split, total
from export import graph
from serving.artifact import MANIFEST, read_manifest, sha256
from serving.client import TritonPipeline
from serving.errors import ArtifactError, ServerError
from serving.manifests import RepositoryManifest
from serving.runtime.tasks.base import Arrays, Tensor
from serving.supervisor import find_running

_PACKAGE_ANEW = "write it anew with: tritonize package"

IN_FLIGHT = 16
"""Labelled rows asked at once: the answers judged are given under load, as in production."""
OPEN_REQUESTS = 20
"""Chance decides how many requests of an open loop fall into a slice: so many are to be expected at least."""
ANSWERS_PER_CLIENT = 2
"""Many clients of a slow model wait longer for one answer than a slice of time may last: it then lasts as long as two."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a server listens."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int

    def url(self, protocol: str) -> str:
        """``host:port`` of ``grpc`` or ``http``."""
        return f"{self.host}:{self.grpc_port if protocol == 'grpc' else self.http_port}"

    @property
    def is_local(self) -> bool:
        """Whether the server runs on this machine, as far as its name tells."""
        return self.host in ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # noqa: S104 - compared, not bound


@dataclass(frozen=True, kw_only=True)
class ServedPackage:
    """What was packaged: the repository's manifest and the checksum of its ONNX file, which still is the packaged one."""

    name: str
    repository: Path
    precision: str
    manifest: RepositoryManifest
    sha256: str

    @property
    def file(self) -> Path:
        """The ONNX file that is served."""
        return self.repository / f"{self.name}_model" / "1" / "model.onnx"

    @property
    def settings(self) -> dict[str, Any]:
        """How the model is served."""
        return asdict(self.manifest.configuration)


def read_package(repository: Path, name: str) -> ServedPackage:
    """Read what ``package`` recorded about ``name``.

    Raises:
        ArtifactError: it is not there, or its ONNX file is not the one that was packaged.
    """
    manifest = read_manifest(repository / name, RepositoryManifest)
    file = f"{name}_model/1/model.onnx"
    packaged = manifest.files.get(file)
    if packaged is None:
        raise ArtifactError(f"the manifest of {repository / name} does not list {file}", hint=_PACKAGE_ANEW)
    found = sha256(repository / file)
    if found != packaged:
        raise ArtifactError(f"{repository / file} is not the file that was packaged: its checksum differs", hint=_PACKAGE_ANEW)
    return ServedPackage(name=name, repository=repository, precision=manifest.precision, manifest=manifest, sha256=found)


def require_same_bundle(package: ServedPackage, bundle: Path) -> None:
    """Check that ``package`` was made from ``bundle`` as it is now.

    Raises:
        ArtifactError: it was made from another, so its answers would be held against another original.
    """
    if package.manifest.inputs.files.get(MANIFEST) != sha256(bundle / MANIFEST):
        raise ArtifactError(f"{package.repository / package.name} was not packaged from {bundle} as it is now", hint=_PACKAGE_ANEW)


class ServerConnection:
    """A connection to a running server, for everything but load.

    Raises:
        ServerError: nothing answers, or the server does not serve ``name``.
    """

    def __init__(self, endpoint: Endpoint, name: str) -> None:
        import tritonclient.grpc as triton

        self._triton, self._name = triton, name
        self.endpoint = endpoint
        self._client = triton.InferenceServerClient(endpoint.url("grpc"))
        try:
            ready = self._client.is_server_ready(client_timeout=10) and self._client.is_model_ready(name, client_timeout=10)
        except triton.InferenceServerException as error:
            raise ServerError(
                f"no server answers at {endpoint.url('grpc')}",
                hint="start one with: tritonize serve; or measure without one: --in-process",
            ) from error
        if not ready:
            raise ServerError(
                f"the server at {endpoint.url('grpc')} does not serve {name}",
                hint=f"start one on the right repository: tritonize serve --repository …, with {name} in it",
            )
        metadata = self._client.get_server_metadata()
        self.version = f"{metadata.name} {metadata.version}"
        steps = self._client.get_model_config(name).config.ensemble_scheduling.step
        self.models = [name, *(step.model_name for step in steps)]

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def statistics(self) -> dict[str, Any]:
        """Triton's counters of the ensemble and of every step, by the model's name."""
        return {model: self._client.get_inference_statistics(model).model_stats[0] for model in self.models}

    def ask(self, rows: list[list[str]], options: Mapping[str, Any]) -> Arrays:
        """Answers to ``rows``, one request each, :data:`IN_FLIGHT` at a time, in their order.

        Raises:
            RequestError: the server refused a row.
        """
        with TritonPipeline(self._name, url=self.endpoint.url("grpc"), concurrency=IN_FLIGHT) as pipeline:
            return joined(pipeline.tensors(rows, **options))

    def gpu_memory_mib(self) -> float | None:
        """GPU memory in use on the server's machine, by its metrics endpoint, MiB; None without a GPU or metrics."""
        url = f"http://{self.endpoint.host}:{self.endpoint.metrics_port}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except (urllib.error.URLError, TimeoutError):
            return None
        used = [float(line.rpartition(" ")[2]) for line in lines if line.startswith("nv_gpu_memory_used_bytes{")]
        return sum(used) / MIB if used else None


def check_process(endpoint: Endpoint, package: ServedPackage) -> psutil.Process | None:
    """The process that serves, None where it cannot be seen from here (another machine, or a container).

    Raises:
        ArtifactError: it serves another repository, or was started before this one was packaged.
    """
    process = listening_process(endpoint.grpc_port) if endpoint.is_local else None
    if process is None:
        return None
    flag = "--model-repository="
    served = [process.cwd() / Path(word.removeprefix(flag)) for word in process.cmdline() if word.startswith(flag)]
    if served and not any(folder.resolve() == package.repository.resolve() for folder in served):
        found = ", ".join(map(str, served))
        raise ArtifactError(
            f"the server on port {endpoint.grpc_port} serves {found}, not {package.repository}",
            hint="name the right one with --repository, or the right server with --grpc-port",
        )
    packaged = package.manifest.created.timestamp()
    if process.create_time() < packaged - 1:  # the manifest's time is in whole seconds
        raise ArtifactError(
            f"the server on port {endpoint.grpc_port} was started before {package.name} was packaged, "
            "so it serves an older package",
            hint="start it anew: tritonize stop, tritonize serve",
        )
    return process


@dataclass(frozen=True, kw_only=True)
class Target:
    """The server to measure, connected and checked, and the load generator."""

    server: ServerConnection
    package: ServedPackage
    load_generator: Path


@dataclass(kw_only=True)
class Clients:
    """A way of answering: the server under load over ``protocol``, by ``concurrency`` clients or at a rate.

    Args:
        length: tokens of the rows; None: as they are.
        rate: requests per second of an open loop; None where ``share`` has yet to become one, and in a closed loop.
        share: of what the best of ``closed`` answers in the first round.
        least_seconds: what a slice lasts at least, for every client to get answers.
        memory: of the server, where it can be seen.
        slices, counts: what was measured, and what the server counted of each step, by round.
        joules: what the machine drew meanwhile, by round; empty where it does not tell.
    """

    target: Target
    inputs: tuple[Tensor, ...]
    protocol: str
    concurrency: int | None = None
    rate: float | None = None
    share: float | None = None
    length: int | None = None
    closed: Sequence[Clients] = ()
    least_seconds: float
    memory: MemoryMeter | None
    energy: EnergyMeter
    slices: list[LoadFound] = field(default_factory=list)
    counts: list[dict[str, Counts]] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)

    def measure(self, rows: list[list[str]], seconds: float) -> None:
        """Make the next round's slice."""
        if self.share is not None and self.rate is None:
            best = max(closed_loop(found.spans).throughput for way in self.closed for found in way.slices)
            self.rate = float(f"{self.share * best:.3g}")
        if self.rate is not None:
            seconds = max(seconds, OPEN_REQUESTS / self.rate)
        server, name = self.target.server, self.target.package.name
        options = LoadOptions(
            name=name,
            url=server.endpoint.url(self.protocol),
            protocol=self.protocol,
            concurrency=self.concurrency,
            rate=self.rate,
            duration=max(seconds, self.least_seconds),
        )
        with self.memory or nullcontext():
            before, drawn = server.statistics(), self.energy.read()
            self.slices.append(run_load(self.target.load_generator, options, self.inputs, rows))
            drawn_after = self.energy.read()
            self.counts.append(counts_between(before, server.statistics(), name))
        if drawn is not None and drawn_after is not None:
            self.joules.append(drawn_after - drawn)

    def load(self) -> Load:
        """All rounds together."""
        counted = {step: total(counts[step] for counts in self.counts) for step in self.counts[0]}
        steps = {step: counts.step() for step, counts in counted.items() if step != ENSEMBLE}
        speed = over_rounds([closed_loop(found.spans) for found in self.slices])
        requests = [found.requests for found in self.slices]
        return Load(
            protocol=self.protocol,
            concurrency=self.concurrency,
            rate=self.rate,
            share=self.share,
            length=self.length,
            delayed=fmean((found.delayed for found in self.slices), requests),
            speed=speed,
            executed_batch=steps["model"].executed_batch,
            steps=steps,
            split=split(
                counted,
                mean_us=fmean((found.mean_us for found in self.slices), requests),
                client_us=fmean((found.client_us for found in self.slices), requests),
            ),
            joules_per_row=sum(self.joules) / counted[ENSEMBLE].rows if len(self.joules) == len(self.slices) else None,
        )

    def rounds(self) -> Iterator[dict[str, float]]:
        """The figures that each round has of its own."""
        for found, counts in zip(self.slices, self.counts, strict=True):
            steps = {step: asdict(counted.step()) for step, counted in counts.items() if step != ENSEMBLE}
            parts = split(counts, mean_us=found.mean_us, client_us=found.client_us)
            own = {
                **asdict(closed_loop(found.spans).speed()),
                "executed_batch": steps["model"]["executed_batch"],
                "split": asdict(parts),
            }
            yield dict(flatten("", own | steps))


class UnderLoad:
    """The server's part of a benchmark: its answers to the labelled rows, and the ways of asking it.

    Raises:
        RequestError: the server refused a row.
    """

    def __init__(self, target: Target, inputs: BenchmarkInputs, energy: EnergyMeter) -> None:
        self._target, self._study, self._energy = target, inputs, energy
        self.process = check_process(target.server.endpoint, target.package)
        """The server's, None where it cannot be seen from here."""
        self._memory = MemoryMeter(self.process) if self.process is not None else None
        asked = time.perf_counter()
        with self._memory or nullcontext():
            self._answers = target.server.ask(inputs.rows.labelled, inputs.bundle.task.judged_options)
        self._seconds_per_row = (time.perf_counter() - asked) / len(inputs.rows.labelled)
        closed = [self._clients(protocol, concurrency) for protocol, concurrency in product(inputs.protocols, inputs.concurrencies)]
        first = inputs.protocols[0]
        by_length = [self._clients(first, inputs.concurrencies[0], length=length) for length in inputs.lengths]
        own = [way for way in closed if way.protocol == first]
        opened = [self._clients(first, rate=loop.rate, share=loop.share, closed=own) for loop in inputs.open_loops]
        self.ways = [*closed, *by_length, *opened]  # open loops last: their rates come from the closed ones of the first round

    def _clients(self, protocol: str, concurrency: int | None = None, **how: Any) -> Clients:
        return Clients(
            target=self._target,
            inputs=self._study.bundle.task.inputs(),
            protocol=protocol,
            concurrency=concurrency,
            least_seconds=ANSWERS_PER_CLIENT * (concurrency or 1) * self._seconds_per_row,
            memory=self._memory,
            energy=self._energy,
            **how,
        )

    def found(self, original: Arrays) -> Served:
        """What was measured.

        Args:
            original: the original's answers to the labelled rows.
        """
        server, package = self._target.server, self._target.package
        return Served(
            precision=package.precision,
            package=package.settings,
            sha256=package.sha256,
            server=server.version,
            loads=[way.load() for way in self.ways],
            quality=evaluate(self._study.bundle.task, self._study.rows, self._answers, original),
            load_seconds=_load_seconds(server.endpoint, self.process),
            peak_rss_mib=self._memory.peak_rss_mib if self._memory else None,
            pss_mib=self._memory.pss_mib if self._memory else None,
            gpu_memory_mib=server.gpu_memory_mib(),
            size_mib=graph.size(package.file) / MIB,
        )

    def rounds(self, served: Served) -> list[dict[str, float]]:
        """The figures that each round has of its own, by name."""
        rounds: list[dict[str, float]] = [{} for _ in range(self._study.rounds)]
        for way, load in zip(self.ways, served.loads, strict=True):
            for found, own in zip(rounds, way.rounds(), strict=True):
                found |= {f"{served.name}.{load.name}.{key}": value for key, value in own.items()}
        return rounds

    def samples(self, served: Served) -> dict[str, Spans]:
        """The samples behind the speeds, by name."""
        return {
            f"{served.name}.{load.name}.r{index + 1}": found.spans
            for way, load in zip(self.ways, served.loads, strict=True)
            for index, found in enumerate(way.slices)
        }


def _load_seconds(endpoint: Endpoint, process: psutil.Process | None) -> float | None:
    """What the server's keeper wrote down, if it keeps this very server."""
    running = find_running(endpoint.http_port)
    if running is None or process is None or running.pid not in {parent.pid for parent in process.parents()}:
        return None
    return running.ready_seconds
