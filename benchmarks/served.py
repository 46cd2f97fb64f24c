"""The served ensemble: what it is, how fast it answers under load, and whether it answers right."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

import psutil

from benchmarks.load import LoadOptions, run_load
from benchmarks.machine import MIB, MemoryMeter, listening_process
from benchmarks.quality import judge
from benchmarks.report import Load, Served, Step
from benchmarks.runners import ALL_SCORES, Answers, pipeline_inputs, row_texts
from benchmarks.speed import Spans, closed_loop_speed
from benchmarks.study import Study
from serving.artifact import MANIFEST, read_manifest, sha256
from serving.client import TritonPipeline
from serving.errors import ArtifactError, ServerError
from serving.runtime.tasks.base import Task
from serving.supervisor import find_running

_PACKAGE_ANEW = "write it anew with: tritonize package"

IN_FLIGHT = 16
"""Labelled rows asked at once: the answers judged are given under load, as in production."""


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
class Package:
    """What was packaged: the repository's manifest and the checksum of its ONNX file, which still is the packaged one."""

    name: str
    repository: Path
    precision: str
    manifest: dict[str, Any]
    sha256: str

    SETTINGS = ("precision", "batching", "instances", "threads", "device", "max_batch_size")

    @property
    def settings(self) -> dict[str, Any]:
        """How the model is served."""
        return {key: self.manifest[key] for key in self.SETTINGS if key in self.manifest}


def read_package(repository: Path, name: str) -> Package:
    """Read what ``package`` recorded about ``name``.

    Raises:
        ArtifactError: it is not there, or its ONNX file is not the one that was packaged.
    """
    manifest = read_manifest(repository / name, "repository")
    file = f"{name}_model/1/model.onnx"
    packaged = manifest["files"].get(file)
    if packaged is None:
        raise ArtifactError(f"the manifest of {repository / name} does not list {file}", hint=_PACKAGE_ANEW)
    found = sha256(repository / file)
    if found != packaged:
        raise ArtifactError(f"{repository / file} is not the file that was packaged: its checksum differs", hint=_PACKAGE_ANEW)
    return Package(name=name, repository=repository, precision=manifest["precision"], manifest=manifest, sha256=found)


def require_same_bundle(package: Package, bundle: Path) -> None:
    """Check that ``package`` was made from ``bundle`` as it is now.

    Raises:
        ArtifactError: it was made from another, so its answers would be held against another original.
    """
    if package.manifest["inputs"]["files"].get(MANIFEST) != sha256(bundle / MANIFEST):
        raise ArtifactError(f"{package.repository / package.name} was not packaged from {bundle} as it is now", hint=_PACKAGE_ANEW)


class Server:
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
        self.steps = [step.model_name for step in steps]

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def statistics(self) -> dict[str, Any]:
        """Triton's counters of every step, by its model's name."""
        return {step: self._client.get_inference_statistics(step).model_stats[0] for step in self.steps}

    def ask(self, task: Task, rows: list[list[str]]) -> Answers:
        """Answers to ``rows``, one request each, :data:`IN_FLIGHT` at a time, in their order.

        Raises:
            RequestError: the server refused a row.
        """
        with TritonPipeline(self._name, url=self.endpoint.url("grpc"), concurrency=IN_FLIGHT) as pipeline:
            answers: Answers = pipeline(pipeline_inputs(row_texts(task, rows)), **ALL_SCORES)
        return answers

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


def steps_between(before: dict[str, Any], after: dict[str, Any], name: str) -> dict[str, Step]:
    """What each step did between two readings of :meth:`Server.statistics`, by step without the ensemble's ``name``.

    Raises:
        ServerError: a step executed nothing.
    """
    return {model.removeprefix(f"{name}_"): _step(model, before[model], after[model]) for model in before}


def _step(model: str, before: Any, after: Any) -> Step:
    executions = after.execution_count - before.execution_count
    rows = after.inference_count - before.inference_count
    requests = after.inference_stats.success.count - before.inference_stats.success.count
    if not executions or not requests:
        raise ServerError(
            f"{model} executed nothing while {model.rpartition('_')[0]} was under load",
            hint="does another server, or a cache, answer on these ports?",
        )
    queue = after.inference_stats.queue.ns - before.inference_stats.queue.ns
    compute = _compute_ns(after.inference_stats) - _compute_ns(before.inference_stats)
    busy = sum(map(_compute_ns, after.batch_stats)) - sum(map(_compute_ns, before.batch_stats))
    return Step(
        executed_batch=rows / executions,
        queue_us=queue / requests / 1e3,
        compute_us=compute / requests / 1e3,
        cost_us=busy / rows / 1e3,
    )


def _compute_ns(statistics: Any) -> int:
    parts = (statistics.compute_input, statistics.compute_infer, statistics.compute_output)
    return sum(part.ns for part in parts)


def check_process(endpoint: Endpoint, package: Package) -> psutil.Process | None:
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
    packaged = datetime.fromisoformat(package.manifest["created"]).timestamp()
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

    server: Server
    package: Package
    load_generator: Path


def measure_served(target: Target, study: Study, original: Answers, say: Callable[[str], None]) -> tuple[Served, dict[str, Spans]]:
    """Ask the labelled rows, then put load on the server over each protocol at each concurrency.

    Args:
        original: the original's answers to the labelled rows.
        say: told one line per load.

    Returns:
        What was found, and the samples behind it by figure name.
    """
    server, package, task = target.server, target.package, study.bundle.task
    process = check_process(server.endpoint, package)
    loads: list[Load] = []
    samples: dict[str, Spans] = {}
    with ExitStack() as stack:
        meter = stack.enter_context(MemoryMeter(process)) if process is not None else None
        answers = server.ask(task, study.rows.labelled)
        for protocol, concurrency in product(study.protocols, study.concurrencies):
            load, spans = _measure_load(target, study, protocol, concurrency)
            loads.append(load)
            figure = f"served.{package.precision}.{'' if protocol == 'grpc' else f'{protocol}.'}c{concurrency}"
            samples[figure] = spans
            say(
                f"{figure}: {load.speed.throughput:.0f} rows/s, p50 {load.speed.p50_ms:.2f} ms, "
                f"p99 {load.speed.p99_ms:.2f} ms, executed batch {load.executed_batch:.2f}"
            )
        gpu_memory = server.gpu_memory_mib()
    served = Served(
        precision=package.precision,
        package=package.settings,
        sha256=package.sha256,
        server=server.version,
        loads=loads,
        quality=judge(task, study.rows.references, answers, original),
        load_seconds=_load_seconds(server.endpoint, process),
        peak_rss_mib=meter.peak_rss_mib if meter else None,
        pss_mib=meter.pss_mib if meter else None,
        gpu_memory_mib=gpu_memory,
    )
    return served, samples


def _load_seconds(endpoint: Endpoint, process: psutil.Process | None) -> float | None:
    """What the server's keeper wrote down, if it keeps this very server."""
    running = find_running(endpoint.http_port)
    if running is None or process is None or running.pid not in {parent.pid for parent in process.parents()}:
        return None
    return running.ready_seconds


def _measure_load(target: Target, study: Study, protocol: str, concurrency: int) -> tuple[Load, Spans]:
    server, name = target.server, target.package.name
    options = LoadOptions(
        name=name, url=server.endpoint.url(protocol), protocol=protocol, concurrency=concurrency, duration=study.duration
    )
    before = server.statistics()
    spans = run_load(target.load_generator, options, study.bundle.task.inputs(), study.rows.timed)
    steps = steps_between(before, server.statistics(), name)
    load = Load(
        protocol=protocol,
        concurrency=concurrency,
        speed=closed_loop_speed(spans),
        executed_batch=steps["model"].executed_batch,
        steps=steps,
    )
    return load, spans
