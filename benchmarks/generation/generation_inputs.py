"""What a benchmark of a model that generates measures: bundle, engine settings and texts, read and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.benchmark_options import BenchmarkOptions
from benchmarks.generation.drawn_texts import draw_texts, texts_by_length
from benchmarks.generation.generation_jobs import AskedOptions, continuing, rewriting
from benchmarks.generation.prompts import Prompts
from benchmarks.generation.source_texts import SourceTexts
from benchmarks.generation.tokenized_texts import TokenizedTexts
from benchmarks.inputs import BenchmarkRows
from benchmarks.original_checkpoint import find_original
from benchmarks.served_package import ServedPackage
from export.data import LabelledRows, encode_labels, prepare_rows, read_evaluation
from export.sources import load_rows
from export.tasks import task_of_bundle
from export.tasks._generation import ExportedGenerationTask
from serving.bundle import Bundle
from serving.errors import DataError, refusing
from serving.generating_model import engine_settings
from serving.generation_device import unused_gpu
from serving.generation_plan import make_generation_plan
from serving.options import PackageOptions
from serving.original_location import QUICKSTART
from serving.reporting import logger
from serving.runtime.generation.engine_settings import EngineSettings
from serving.runtime.generation.generation_options import GenerationOptions

IN_FLIGHT = (1, 4, 16)
"""Default numbers of requests in flight."""
COMPARED_CONTINUATIONS, COMPARED_TEXTS = 16, 32
"""Most answers that are compared with the original's, which takes its time for each; of an encoder-decoder also with right ones."""


@dataclass(frozen=True, kw_only=True)
class GenerationSubject:
    """A model that generates, and how it is asked.

    Attributes:
        bundle: The bundle, with the length at which sources are truncated.
        task: Its task.
        engine: Settings of the engine: those that are served.
        asked: Options of the requests.
        texts: Tokenizes what the model reads.
        room: Most tokens of a text.
    """

    bundle: Bundle
    task: ExportedGenerationTask
    engine: EngineSettings
    asked: AskedOptions
    texts: TokenizedTexts
    room: int

    @property
    def generation_options(self) -> GenerationOptions:
        """How timed answers are generated."""
        return self.bundle.generation_task.with_options(self.asked.timed).generation_options


@dataclass(frozen=True, kw_only=True)
class GenerationInputs:
    """What a benchmark of a model that generates measures.

    Attributes:
        rows: The texts. The labelled ones are those whose answers are compared; the references are the right answers, if there are.
        tokens: Mean tokens of the timed texts, by length.
        precisions: Variants that run in process.
        exported: The graph as Optimum exports it; None if it is not measured, or was not exported yet.
    """

    options: BenchmarkOptions
    subject: GenerationSubject
    checkpoint: Path
    rows: BenchmarkRows
    tokens: dict[int | None, float]
    precisions: tuple[str, ...]
    exported: Path | None = None

    @property
    def bundle(self) -> Bundle:
        """The bundle."""
        return self.subject.bundle

    @property
    def clients(self) -> list[int]:
        """Numbers of requests in flight, the smallest first."""
        return sorted(set(self.options.concurrencies or IN_FLIGHT))

    @property
    def whole_tokens(self) -> int | None:
        """Tokens of every timed answer, where answers come whole; None: each token comes by itself."""
        return None if self.bundle.generation_task.streams else self.options.new_tokens

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of the texts that have one length."""
        return tuple(length for length in self.rows.timed if length is not None)


def read_generation_inputs(options: BenchmarkOptions, bundle: Bundle, package: ServedPackage | None) -> GenerationInputs:
    """Read and check what is measured.

    Args:
        options: Options of the stage.
        bundle: The bundle.
        package: What is served; None: the server is not measured.

    Raises:
        ArtifactError: The bundle lacks a precision, a GPU was asked for, or the checkpoint is not its original.
        DataError: The rows cannot be read, or are too few.
    """
    if (reason := unused_gpu(options.device, name=options.name, task=bundle.task.name)) is not None:
        logger.info(f"device {reason}")
    precisions: tuple[str, ...] = options.precisions or tuple(bundle.variants)
    for precision in precisions:
        bundle.variant(precision)  # an error now rather than minutes later
    checkpoint = find_original(options, bundle)
    engine = default_engine(bundle) if package is None else packaged_engine(package)
    packaged = bundle if package is None else bundle.with_max_length(package.manifest.max_length)
    subject = generation_subject(packaged, engine, options.new_tokens)
    labelled = _labelled(options, subject)
    drawn = draw_texts(subject.texts, labelled.texts[0], count=options.rows, seed=options.seed, room=subject.room)
    if len(drawn) < options.rounds:
        raise DataError(
            f"{len(drawn)} rows cannot be dealt out to {options.rounds} rounds",
            hint="give fewer --rounds, shorter answers with --new-tokens, or other rows with --test",
        )
    texts = [labelled.texts[0][row] for row in drawn]
    lengths = texts_by_length(subject.texts, texts, options.lengths, room=subject.room, least=options.rounds)
    timed: dict[int | None, list[str]] = {None: texts}
    for length, some in lengths.items():
        timed[length] = some
    compared = drawn[: COMPARED_CONTINUATIONS if bundle.generation_task.streams else COMPARED_TEXTS]
    count = subject.texts.tokens
    return GenerationInputs(
        options=options,
        subject=subject,
        checkpoint=checkpoint,
        rows=BenchmarkRows(
            timed={length: [[text] for text in some] for length, some in timed.items()},
            labelled=[[labelled.texts[0][row]] for row in compared],
            references=[] if bundle.generation_task.streams else [labelled.labels[row] for row in compared],
        ),
        tokens={length: sum(len(count(text)) for text in some) / len(some) for length, some in timed.items()},
        precisions=precisions,
    )


def generation_subject(bundle: Bundle, engine: EngineSettings, new_tokens: int) -> GenerationSubject:
    """Return how a model is asked for answers of ``new_tokens`` tokens.

    Args:
        bundle: The bundle, with the length at which sources are truncated.
        engine: Settings of the engine.
        new_tokens: Tokens of every answer that is timed.

    Raises:
        DataError: Answers cannot have so many tokens.
    """
    task = task_of_bundle(bundle)
    assert isinstance(task, ExportedGenerationTask), "the task of a bundle that generates"
    if new_tokens >= engine.capacity:
        what = f"leave no room for a prompt: a sequence has {engine.capacity} tokens"
        if not bundle.generation_task.streams:
            what = f"are too long: this model has room for {engine.capacity - 1}"
        raise DataError(f"answers of {new_tokens} tokens {what}", hint="give fewer --new-tokens")
    texts: TokenizedTexts
    if bundle.generation_task.streams:
        asked = continuing(new_tokens, special_tokens=task.adds_special_tokens)
        texts, room = Prompts(bundle, engine.capacity, asked.timed), engine.capacity - new_tokens
    else:
        asked = rewriting(new_tokens)
        texts, room = SourceTexts(bundle, asked.timed), bundle.max_length
    return GenerationSubject(bundle=bundle, task=task, engine=engine, asked=asked, texts=texts, room=room)


def default_engine(bundle: Bundle, *, capacity: int | None = None) -> EngineSettings:
    """Return the settings that a model is packaged with if no other option says otherwise, and it was not tuned."""
    return engine_settings(bundle, make_generation_plan(bundle, PackageOptions(device="cpu", capacity=capacity)))


def packaged_engine(package: ServedPackage) -> EngineSettings:
    """Read the settings of a package.

    Raises:
        ArtifactError: They cannot be read.
    """
    settings = package.file.parent / "settings.json"
    with refusing(f"{settings} is damaged", hint="write it again with: tritonize package"):
        return EngineSettings.from_settings(json.loads(settings.read_text(encoding="utf-8")))


def _labelled(options: BenchmarkOptions, subject: GenerationSubject) -> LabelledRows:
    bundle, task = subject.bundle, subject.task
    if options.test is None:
        return read_evaluation(bundle.folder, task)
    cache = options.artifacts / QUICKSTART
    found = encode_labels(load_rows(options.test, options.columns, type(task), split="test", cache=cache), task)
    return prepare_rows(found, task, bundle.encoder(["input_ids"]), location=options.test, training=False)
