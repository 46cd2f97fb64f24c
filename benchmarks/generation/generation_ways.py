"""Models that generate, each in a process of its own, and the load on the server: timed in turns, then collected."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import psutil

from benchmarks.generation.generation_inputs import GenerationInputs
from benchmarks.generation.generation_runs import PEERS, GenerationRun, planned_streams, server_jobs
from benchmarks.jobs import WorkerFacts
from benchmarks.measurements import Arrangement, Load, LoadMode
from benchmarks.processes import MemoryMeter, cpu_seconds
from benchmarks.report import flatten
from benchmarks.served import ServerConnection
from benchmarks.served_package import ServedPackage
from benchmarks.speed import over_rounds
from benchmarks.token_speed import GenerationSlice, TokenTimes, tokens_over_rounds
from benchmarks.workers import Workers, started
from serving.errors import SetupError
from serving.reporting import logger


@dataclass(frozen=True, kw_only=True)
class GeneratingWay:
    """A number of requests in flight, in a process of its own or on the server.

    Attributes:
        name: Name of the arrangement or the load.
        length: Tokens of the prompts; None: as they are.
        server: Root of the server's processes; None in process, or if it is not visible from here.
        memory: Meter of the server's memory; None as before.
        served: Whether the requests go to the server.
        whole_tokens: Tokens of every answer, where answers come whole; None: each token comes by itself.
    """

    name: str
    workers: Workers
    in_flight: int
    length: int | None
    served: bool = False
    whole_tokens: int | None = None
    server: psutil.Process | None = None
    memory: MemoryMeter | None = None
    slices: list[GenerationSlice] = field(default_factory=list)

    def measure(self, rows: list[list[str]], seconds: float) -> None:
        """Measure the next round's slice."""
        prompts = [row[0] for row in rows]
        with self.memory or contextlib.nullcontext():
            before = None if self.server is None else cpu_seconds(self.server)
            times, own = self.workers.generate(prompts, self.in_flight, seconds)
            after = None if self.server is None else cpu_seconds(self.server)
        used = None if before is None or after is None else after - before
        spent = {"cpu_seconds": used, "client_cpu_seconds": own} if self.served else {"cpu_seconds": own}
        self.slices.append(GenerationSlice(times=times, whole_tokens=self.whole_tokens, **spent))

    def rounds(self) -> Iterator[dict[str, float]]:
        """Yield the figures that each round has of its own."""
        for one in self.slices:
            tokens = one.token_speed()
            yield dict(flatten("", asdict(one.timing().speed()) | asdict(tokens)))


@dataclass(frozen=True, kw_only=True)
class GeneratingProcess:
    """A loaded process of a run, and what it is timed with."""

    run: GenerationRun
    workers: Workers
    ways: list[GeneratingWay]


@contextlib.contextmanager
def generating(
    runs: Sequence[GenerationRun], prompts: int, whole_tokens: int | None, remark: Callable[[str], None]
) -> Iterator[list[GeneratingProcess]]:
    """Load every model that runs in process; all stay loaded and asleep as long as the block runs.

    Args:
        runs: The models.
        prompts: Number of prompts whose answers are compared.
        whole_tokens: See :class:`GeneratingWay`.
        remark: Is told which peers are left out, and why.

    Raises:
        SetupError: A worker failed.
    """
    with contextlib.ExitStack() as stack:
        found = []
        logger.info(f"loading {len(runs)} models, one after another; every model answers the {prompts} prompts that are compared")
        for run in runs:
            try:
                workers = stack.enter_context(started(run.job))
            except SetupError as error:
                if run.job.backend not in PEERS:
                    raise
                remark(f"{run.model} is left out: {error.message}")
                continue
            ways = [
                GeneratingWay(
                    name=run.arrangement(count, length),
                    workers=workers,
                    in_flight=count,
                    length=length,
                    whole_tokens=whole_tokens,
                )
                for count, length in run.calls
            ]
            found.append(GeneratingProcess(run=run, workers=workers, ways=ways))
        yield found


@dataclass(frozen=True, kw_only=True)
class ServedGenerator:
    """The server to measure, connected and checked.

    Attributes:
        process: Root of the server's processes; None if it is not visible from here.
    """

    connection: ServerConnection
    package: ServedPackage
    process: psutil.Process | None


@dataclass(frozen=True, kw_only=True)
class Streams:
    """The load on the server.

    Attributes:
        workers: The load generators. The first one has asked for the answers that are compared.
        loads: How the server is loaded by each way.
        memory: Meter of the server's memory; None if its process is not visible from here.
    """

    workers: list[Workers]
    ways: list[GeneratingWay]
    loads: list[LoadMode]
    memory: MemoryMeter | None


@contextlib.contextmanager
def streaming(inputs: GenerationInputs, served: ServedGenerator) -> Iterator[Streams]:
    """Start the load generators, and ask the server for the answers that are compared.

    Raises:
        SetupError: A load generator failed.
    """
    process = served.process
    memory = MemoryMeter(process) if process is not None else None
    with contextlib.ExitStack() as stack:
        jobs = server_jobs(inputs, served.package, served.connection.address, served.connection.access)
        with memory or contextlib.nullcontext():
            workers = {protocol: stack.enter_context(started(job)) for protocol, job in jobs.items()}
        loads = planned_streams(inputs)
        ways = [
            GeneratingWay(
                name=load.name,
                workers=workers[load.protocol],
                in_flight=load.concurrency or 1,
                length=load.length,
                served=True,
                whole_tokens=inputs.whole_tokens,
                server=process,
                memory=memory,
            )
            for load in loads
        ]
        yield Streams(workers=list(workers.values()), ways=ways, loads=loads, memory=memory)


def to_load(mode: LoadMode, way: GeneratingWay) -> Load:
    """Combine all rounds of a load."""
    return Load(
        **asdict(mode),
        speed=over_rounds([one.timing() for one in way.slices]),
        executed_batch=None,
        steps={},
        split=None,
        tokens=tokens_over_rounds(way.slices),
    )


def to_arrangement(way: GeneratingWay, facts: WorkerFacts) -> Arrangement:
    """Combine all rounds of a model in process."""
    return Arrangement(
        name=way.name,
        processes=1,
        threads=facts.threads,
        batch=way.in_flight,
        length=way.length,
        speed=over_rounds([one.timing() for one in way.slices]),
        load_seconds=facts.load_seconds,
        first_answer_seconds=facts.first_answer_seconds,
        peak_rss_mib=facts.peak_rss_mib,
        gpu_memory_mib=None,
        tokens=tokens_over_rounds(way.slices),
    )


def samples_of(name: str, way: GeneratingWay) -> dict[str, TokenTimes]:
    """Return the times of the tokens of a way by the names of :data:`benchmarks.samples.Samples`."""
    return {f"{name}.{way.name}.r{index + 1}": one.times for index, one in enumerate(way.slices)}
