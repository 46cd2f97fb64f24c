"""The work of a process that generates text and times it, see :mod:`benchmarks.runners`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.generation.generation_jobs import GenerationJob, TimedReply, TimedRequest
from benchmarks.jobs import WorkerFacts
from benchmarks.own_memory import peak_rss_mib
from serving.artifact import sha256

if TYPE_CHECKING:
    from benchmarks.token_speed import TokenTimes
    from serving.bundle import Bundle


class TextGenerator(Protocol):
    """What a worker generates with.

    Attributes:
        file: The file that was loaded; its checksum tells which variant ran.
        threads: Threads of one operator.
    """

    file: Path
    threads: int

    def precision(self) -> str:
        """Name the precision that the model computes in; empty if only the bundle's manifest tells it."""
        ...

    def answer(self, prompts: Sequence[str]) -> list[Any]:
        """Return the answer to each prompt: its tokens; of an encoder-decoder its text."""
        ...

    def measure(self, prompts: Sequence[str], in_flight: int, seconds: float) -> TokenTimes:
        """Answer prompts, again and again, until the time is over; ``in_flight`` of them at a time."""
        ...


Loader = Callable[[GenerationJob, "Bundle"], TextGenerator]


def _continuing(backend: str) -> Loader:
    """Import what continues texts."""
    if backend == "served":
        from benchmarks.generation.stream_clients import StreamClients

        return StreamClients
    if backend == "onnx":
        from benchmarks.generation.decoder_clients import DecoderClients

        return DecoderClients
    from benchmarks.generation import generators

    return {
        "pytorch": generators.PyTorchGenerate,
        "exported": generators.OptimumGenerate,
        "ctranslate2": generators.CTranslate2Generate,
    }[backend]


def _rewriting(backend: str) -> Loader:
    """Import what makes a text of a text."""
    if backend == "served":
        from benchmarks.generation.whole_answer_clients import WholeAnswerClients

        return WholeAnswerClients
    if backend == "onnx":
        from benchmarks.generation.encoder_decoder_clients import EncoderDecoderClients

        return EncoderDecoderClients
    from benchmarks.generation import rewriters

    return {
        "pytorch": rewriters.PyTorchRewrite,
        "exported": rewriters.OptimumRewrite,
        "ctranslate2": rewriters.CTranslate2Rewrite,
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

    bundle = load_bundle(job.bundle).with_max_length(job.max_length)
    load = _continuing if bundle.generation_task.streams else _rewriting
    generator = load(job.backend)(job, bundle)
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
