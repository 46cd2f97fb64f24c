"""The testbed of models that answer in one execution: ``perf_analyzer`` sends the texts."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.energy import EnergyMeter
from benchmarks.load import find_perf_analyzer
from benchmarks.measurements import LoadMode
from benchmarks.processes import MemoryMeter
from benchmarks.served import ANSWERS_PER_CLIENT, Clients, ServerConnection, Target
from benchmarks.served_package import read_package
from benchmarks.tuning.testbed import NAME, WARM_UP_ROWS, Testbed, UnderLoadFigures
from benchmarks.tuning.tune_options import TuneOptions
from export.data import read_evaluation, sample_indices
from export.tasks import bundle_task
from serving.bundle import Bundle
from serving.install import triton_environment
from serving.manifests import LoadRecord
from serving.options import ServeOptions


@dataclass(frozen=True, kw_only=True)
class EncoderTestbed(Testbed):
    """Measures configurations of a model that answers in one execution.

    Attributes:
        rows: Evaluation rows, each a list of strings in the order of the task's inputs.
    """

    rows: list[list[str]]
    load_generator: Path

    def _under_load(self, options: ServeOptions, memory: MemoryMeter) -> UnderLoadFigures:
        with contextlib.closing(ServerConnection(options, NAME)) as connection:
            target = Target(server=connection, package=read_package(options.repository, NAME), load_generator=self.load_generator)
            asked = time.perf_counter()
            connection.ask(self.rows[:WARM_UP_ROWS], {})
            seconds_per_row = (time.perf_counter() - asked) / len(self.rows[:WARM_UP_ROWS])
            levels = [self._level(target, memory, clients, seconds_per_row) for clients in self.concurrencies]
            return UnderLoadFigures(levels=levels, gpu_memory_mib=connection.gpu_memory_mib())

    def _level(self, target: Target, memory: MemoryMeter, concurrency: int, seconds_per_row: float) -> LoadRecord:
        clients = Clients(
            target=target,
            inputs=self.bundle.task.inputs(),
            mode=LoadMode(protocol="grpc", concurrency=concurrency),
            least_seconds=ANSWERS_PER_CLIENT * concurrency * seconds_per_row,
            memory=memory,
            energy=EnergyMeter([]),
        )
        clients.measure(self.rows, self.duration)
        load = clients.load()
        return LoadRecord(
            concurrency=concurrency,
            throughput=load.speed.throughput,
            p50_ms=load.speed.p50_ms,
            p99_ms=load.speed.p99_ms,
            executed_batch=load.steps["model"].executed_batch,
        )


def make_encoder_testbed(bundle: Bundle, options: TuneOptions) -> EncoderTestbed:
    """Return a testbed on evaluation rows of the bundle.

    Raises:
        DataError: The bundle holds no evaluation rows.
        SetupError: There is no load generator on this machine.
    """
    task = bundle_task(bundle)
    columns = list(zip(*task.requests(read_evaluation(bundle.folder, task).texts), strict=True))
    return EncoderTestbed(
        bundle=bundle,
        rows=[list(columns[index]) for index in sample_indices(len(columns), options.rows, options.seed)],
        concurrencies=options.loads,
        duration=options.duration,
        load_generator=find_perf_analyzer(triton_environment()),
    )
