"""The runs of a benchmark of a model that generates: which models run in process, and how the server is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.generation.conversions import CTRANSLATE2, has_ctranslate2
from benchmarks.generation.generation_inputs import GenerationInputs, GenerationSubject
from benchmarks.generation.generation_jobs import GenerationJob, ServerTarget
from benchmarks.measurements import LoadMode
from benchmarks.model_runs import Call
from benchmarks.served_package import ServedPackage
from serving.access_options import AccessOptions
from serving.options import ServerAddress, WireProtocol

PEERS = ("exported", CTRANSLATE2)
"""Backends that do not run every architecture: without them, the others are measured all the same."""
CONTINUOUS = "onnx"
"""The backend whose requests join and leave a running batch."""


@dataclass(frozen=True, kw_only=True)
class GenerationRun:
    """A process that generates, and what it is timed with: requests in flight, and tokens of their prompts."""

    job: GenerationJob
    precision: str
    calls: tuple[Call, ...]

    @property
    def model(self) -> str:
        """Name of the model that gates use, if the planned precision runs."""
        return f"{self.job.backend}.{self.precision}"

    def arrangement(self, in_flight: int, length: int | None) -> str:
        """Name an arrangement, see :class:`benchmarks.measurements.Arrangement`."""
        return f"{'c' if self.job.backend == CONTINUOUS else 'b'}{in_flight}{f'l{length}' if length else ''}"


def planned_generation_runs(inputs: GenerationInputs, converted: Path) -> Iterator[GenerationRun]:
    """Plan the models in process, the original first; CTranslate2 finds its models in ``converted``."""
    clients = inputs.clients
    by_length: tuple[Call, ...] = tuple((clients[0], length) for length in inputs.lengths)
    every: tuple[Call, ...] = tuple((count, None) for count in clients)
    static = tuple(dict.fromkeys([(1, None), every[-1]]))
    labelled = [row[0] for row in inputs.rows.labelled]

    def run(backend: str, source: Path, precision: str, calls: tuple[Call, ...]) -> GenerationRun:
        job = generation_job(inputs.subject, backend, source, precision, new_tokens=inputs.options.new_tokens, labelled=labelled)
        return GenerationRun(job=job, precision=precision, calls=calls)

    yield run("pytorch", inputs.checkpoint, "fp32", (*static, *by_length))
    if inputs.exported is not None:
        yield run("exported", inputs.exported, "fp32", static)
    if has_ctranslate2():
        for precision in ("fp32", "int8"):
            yield run(CTRANSLATE2, converted / precision, precision, static)
    for precision in inputs.precisions:
        yield run(CONTINUOUS, inputs.bundle.variant(precision).path, precision, (*every, *by_length))


def planned_streams(inputs: GenerationInputs) -> list[LoadMode]:
    """Plan the loads on the server: closed loops, then prompts of one length."""
    options, clients = inputs.options, inputs.clients
    closed = [LoadMode(protocol=protocol, concurrency=count) for protocol in options.protocols for count in clients]
    by_length = [LoadMode(protocol=options.protocols[0], concurrency=clients[0], length=length) for length in inputs.lengths]
    return [*closed, *by_length]


def server_jobs(
    inputs: GenerationInputs, package: ServedPackage, address: ServerAddress, access: AccessOptions
) -> dict[str, GenerationJob]:
    """Return the job of a load generator by protocol. The first one also asks for the answers that are compared."""
    protocols, labelled = inputs.options.protocols, [row[0] for row in inputs.rows.labelled]
    return {
        protocol: generation_job(
            inputs.subject,
            "served",
            package.file,
            server=server_target(package.name, address, protocol, access),
            new_tokens=inputs.options.new_tokens,
            labelled=labelled if protocol == protocols[0] else [],
        )
        for protocol in protocols
    }


def server_target(name: str, address: ServerAddress, protocol: WireProtocol, access: AccessOptions | None = None) -> ServerTarget:
    """Return where a model is asked over a protocol."""
    url = address.grpc_url if protocol == "grpc" else address.base_url.removeprefix("http://")
    return ServerTarget(name=name, url=url, protocol=protocol, access=access or AccessOptions())


def generation_job(
    subject: GenerationSubject,
    backend: str,
    source: Path,
    precision: str = "",
    *,
    new_tokens: int,
    labelled: list[str],
    server: ServerTarget | None = None,
) -> GenerationJob:
    """Return the job of a worker; see :class:`GenerationJob` for the arguments."""
    return GenerationJob(
        backend=backend,
        source=source,
        bundle=subject.bundle.folder,
        max_length=subject.bundle.max_length,
        engine=subject.engine,
        new_tokens=new_tokens,
        options=subject.asked,
        precision=precision,
        server=server,
        labelled=labelled,
    )
