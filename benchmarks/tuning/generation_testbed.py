"""The testbed of models that generate: the load generator of the benchmark asks for answers of equal length."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.generation.drawn_texts import draw_texts
from benchmarks.generation.generation_inputs import default_engine, generation_subject, packaged_engine
from benchmarks.generation.generation_jobs import GenerationJob
from benchmarks.generation.generation_runs import generation_job, server_target
from benchmarks.generation.generation_ways import GeneratingWay, to_load
from benchmarks.measurements import LoadMode
from benchmarks.processes import MemoryMeter
from benchmarks.served_package import read_package
from benchmarks.tuning.packaged_sizes import packaged_sizes
from benchmarks.tuning.testbed import NAME, Testbed, UnderLoadFigures
from benchmarks.tuning.tune_options import TuneOptions
from benchmarks.workers import Workers, started
from export.data import read_evaluation
from serving.bundle import Bundle
from serving.errors import DataError, ServerError, SetupError
from serving.manifests import LoadRecord
from serving.options import ServeOptions

WARM_UP_ANSWERS = 4


@dataclass(frozen=True, kw_only=True)
class GenerationTestbed(Testbed):
    """Measures configurations of a model that generates.

    Attributes:
        texts: What is sent.
        new_tokens: Tokens of every answer.
    """

    texts: list[str]
    new_tokens: int

    def _under_load(self, options: ServeOptions, memory: MemoryMeter) -> UnderLoadFigures:
        try:
            with memory, started(self._job(options)) as workers:
                return UnderLoadFigures(levels=[self._level(workers, clients) for clients in self.concurrencies])
        except SetupError as error:  # the load generator ended: this configuration did not answer
            raise ServerError(error.message, hint=error.hint) from error

    def _job(self, options: ServeOptions) -> GenerationJob:
        packaged = read_package(options.repository, NAME)
        subject = generation_subject(self.bundle, packaged_engine(packaged), self.new_tokens)
        server, warm_up = server_target(NAME, options, "grpc"), self.texts[:WARM_UP_ANSWERS]
        return generation_job(subject, "served", packaged.file, server=server, new_tokens=self.new_tokens, labelled=warm_up)

    def _level(self, workers: Workers, concurrency: int) -> LoadRecord:
        """Measure a load, after a warm-up of half of ``duration`` that does not count."""
        mode = LoadMode(protocol="grpc", concurrency=concurrency)
        whole = None if self.bundle.generation_task.streams else self.new_tokens
        warm_up, way = (
            GeneratingWay(name=mode.name, workers=workers, in_flight=concurrency, length=None, served=True, whole_tokens=whole)
            for _ in range(2)
        )
        rows = [[text] for text in self.texts]
        warm_up.measure(rows, self.duration / 2)
        way.measure(rows, self.duration)
        load = to_load(mode, way)
        assert load.tokens is not None
        return LoadRecord(
            concurrency=concurrency,
            throughput=load.speed.throughput,
            p50_ms=load.speed.p50_ms,
            p99_ms=load.speed.p99_ms,
            executed_batch=None,
            tokens_per_second=load.tokens.tokens_per_second,
        )


def make_generation_testbed(bundle: Bundle, options: TuneOptions) -> GenerationTestbed:
    """Return a testbed on evaluation rows of the bundle.

    Raises:
        DataError: The bundle holds no evaluation rows that leave room for an answer.
    """
    engine = default_engine(bundle, capacity=packaged_sizes(options)[1])
    subject = generation_subject(bundle, engine, options.new_tokens)
    rows = read_evaluation(bundle.folder, subject.task).texts[0]
    drawn = draw_texts(subject.texts, rows, count=options.rows, seed=options.seed, room=subject.room)
    if not drawn:
        raise DataError(f"{bundle.folder} has no rows that leave room for an answer", hint="give fewer --new-tokens")
    return GenerationTestbed(
        bundle=bundle,
        texts=[rows[place] for place in drawn],
        new_tokens=options.new_tokens,
        concurrencies=options.loads,
        duration=options.duration,
    )
