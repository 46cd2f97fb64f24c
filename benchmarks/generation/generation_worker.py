"""The work of a process that generates text and times it, see :mod:`benchmarks.runners`."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from benchmarks.generation.generation_jobs import GenerationJob, TimedReply, TimedRequest
from benchmarks.jobs import WorkerFacts
from benchmarks.own_memory import peak_rss_mib
from serving.artifact import sha256

if TYPE_CHECKING:
    from benchmarks.generation.generators import TextGenerator
    from serving.bundle import Bundle


def _generator(backend: str) -> Callable[[GenerationJob, Bundle], TextGenerator]:
    """Import what generates."""
    if backend == "served":
        from benchmarks.generation.stream_clients import StreamClients

        return StreamClients
    if backend == "onnx":
        from benchmarks.generation.engine_clients import EngineClients

        return EngineClients
    from benchmarks.generation import generators

    return {
        "pytorch": generators.PyTorchGenerate,
        "exported": generators.OptimumGenerate,
        "ctranslate2": generators.CTranslate2Generate,
    }[backend]


def serve_generation(channel: Connection[Any, Any], job: GenerationJob, started: int) -> None:
    """Load a job, answer its labelled prompts, and time slices until the benchmark asks for the facts.

    Args:
        channel: The channel to the benchmark.
        job: The job, which came over the channel.
        started: When the process began, as :func:`time.perf_counter_ns` counts.

    Raises:
        EOFError: The benchmark has ended without asking for the facts.
    """
    from serving.bundle import load_bundle

    generator = _generator(job.backend)(job, load_bundle(job.bundle))
    loaded = time.perf_counter_ns()
    first = generator.answer(job.labelled[:1])
    answered = time.perf_counter_ns()
    answers = first + generator.answer(job.labelled[1:]) if job.backend != "served" else generator.answer(job.labelled)
    channel.send(None)
    while (wanted := channel.recv()) is not None:
        channel.send(_timed(generator, wanted))
    channel.send(
        WorkerFacts(
            file=generator.file,
            sha256=sha256(generator.file),
            precision=generator.precision(),
            threads=generator.threads,
            load_seconds=(loaded - started) / 1e9,
            first_answer_seconds=(answered - loaded) / 1e9,
            peak_rss_mib=peak_rss_mib(),
            gpu_memory_mib=None,
            answers=answers,
        )
    )


def _timed(generator: TextGenerator, wanted: TimedRequest) -> TimedReply:
    prompts, in_flight, seconds = wanted
    before = time.process_time()
    times = generator.measure(prompts, in_flight, seconds)
    return times, time.process_time() - before
