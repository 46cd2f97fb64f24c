"""What a benchmark of a model that generates measures: bundle, engine settings and prompts, read and checked."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.benchmark_options import BenchmarkOptions
from benchmarks.generation.generation_jobs import greedy
from benchmarks.generation.prompts import Prompts
from benchmarks.in_process import require_original
from benchmarks.inputs import BenchmarkRows
from benchmarks.served_package import ServedPackage
from export.data import encode_labels, prepare_rows, read_evaluation, sample_indices
from export.sources import checkpoint_folder, load_rows
from export.tasks import task_of_bundle
from export.tasks._generation import ExportedGenerationTask
from export.tasks.base import Task
from serving.bundle import Bundle
from serving.errors import ArtifactError, DataError, refusing
from serving.generating_model import engine_settings
from serving.generation_plan import make_generation_plan
from serving.options import PackageOptions
from serving.reporting import logger
from serving.runtime.generation.engine_settings import EngineSettings
from serving.runtime.tasks.text_generation import TextGeneration

QUICKSTART_CACHE = "quickstart"
IN_FLIGHT = (1, 4, 16)
"""Default numbers of requests in flight."""
COMPARED = 16
"""Most prompts whose answers are compared with the original's, which takes its time for each."""
ROWS_OF_LENGTH = 48


@dataclass(frozen=True, kw_only=True)
class GenerationInputs:
    """What a benchmark of a model that generates measures.

    Attributes:
        engine: Settings of the engine: those that are served.
        special_tokens: Whether the tokenizer adds special tokens to a prompt.
        rows: Prompts. The labelled ones are those whose answers are compared.
        tokens: Mean tokens of the timed prompts, by length.
        precisions: Variants that run in process.
        exported: The graph as Optimum exports it; None if it is not measured, or was not exported yet.
    """

    options: BenchmarkOptions
    bundle: Bundle
    checkpoint: Path
    engine: EngineSettings
    special_tokens: bool
    rows: BenchmarkRows
    tokens: dict[int | None, float]
    precisions: tuple[str, ...]
    exported: Path | None = None

    @property
    def clients(self) -> list[int]:
        """Numbers of requests in flight, the smallest first."""
        return sorted(set(self.options.concurrencies or IN_FLIGHT))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of the prompts that have one length."""
        return tuple(length for length in self.rows.timed if length is not None)


def read_generation_inputs(options: BenchmarkOptions, bundle: Bundle, package: ServedPackage | None) -> GenerationInputs:
    """Read and check what is measured.

    Args:
        options: Options of the stage.
        bundle: The bundle.
        package: What is served; None: the server is not measured.

    Raises:
        ArtifactError: The bundle lacks a precision, is of a task that is not measured yet, or the checkpoint is not its original.
        DataError: The rows cannot be read, or are too few.
    """
    task = task_of_bundle(bundle)
    if not isinstance(task, ExportedGenerationTask) or not isinstance(bundle.task, TextGeneration):
        raise ArtifactError(f"models of {bundle.task.name} are not measured", hint="benchmark measures text-generation")
    if options.device == "gpu":
        raise ArtifactError(f"{bundle.manifest.name} generates on a CPU here", hint="give --device cpu")
    precisions: tuple[str, ...] = options.precisions or tuple(bundle.variants)
    for precision in precisions:
        bundle.variant(precision)  # an error now rather than minutes later
    checkpoint = checkpoint_folder(options.original, options.artifacts / QUICKSTART_CACHE)
    require_original(bundle, checkpoint)
    engine = _default_engine(bundle) if package is None else _packaged_engine(package)
    if options.new_tokens >= engine.capacity:
        raise DataError(
            f"answers of {options.new_tokens} tokens leave no room for a prompt: a sequence has {engine.capacity} tokens",
            hint="give fewer --new-tokens",
        )
    prompts = Prompts(bundle, engine.capacity, greedy(options.new_tokens) | {"add_special_tokens": task.adds_special_tokens})
    texts = _drawn(_texts(options, bundle, task), options, prompts, room=engine.capacity - options.new_tokens)
    timed = {None: texts} | _by_length(options, prompts, texts, room=engine.capacity - options.new_tokens)
    return GenerationInputs(
        options=options,
        bundle=bundle,
        checkpoint=checkpoint,
        engine=engine,
        special_tokens=task.adds_special_tokens,
        rows=BenchmarkRows(
            timed={length: [[text] for text in some] for length, some in timed.items()},
            labelled=[[text] for text in texts[:COMPARED]],
            references=[],
        ),
        tokens={length: sum(len(prompts.tokens(text)) for text in some) / len(some) for length, some in timed.items()},
        precisions=precisions,
    )


def _default_engine(bundle: Bundle) -> EngineSettings:
    return engine_settings(bundle, make_generation_plan(bundle, PackageOptions(device="cpu")))


def _packaged_engine(package: ServedPackage) -> EngineSettings:
    settings = package.file.parent / "settings.json"
    with refusing(f"{settings} is damaged", hint="write it again with: tritonize package"):
        return EngineSettings.from_settings(json.loads(settings.read_text(encoding="utf-8")))


def _texts(options: BenchmarkOptions, bundle: Bundle, task: Task) -> list[str]:
    if options.test is None:
        return list(read_evaluation(bundle.folder, task).texts[0])
    cache = options.artifacts / QUICKSTART_CACHE
    found = encode_labels(load_rows(options.test, options.columns, type(task), split="test", cache=cache), task)
    encoder = bundle.encoder(["input_ids"])
    return list(prepare_rows(found, task, encoder, location=options.test, training=False).texts[0])


def _drawn(texts: Sequence[str], options: BenchmarkOptions, prompts: Prompts, *, room: int) -> list[str]:
    """Draw the prompts that are timed, from those that fit.

    Raises:
        DataError: They are too few for the rounds.
    """
    fitting = [text for text in texts if text and len(prompts.tokens(text)) <= room]
    if left_out := len(texts) - len(fitting):
        logger.info(f"{left_out} of {len(texts)} rows are left out: they are empty, or longer than {room} tokens")
    drawn = [fitting[index] for index in sample_indices(len(fitting), options.rows, options.seed)]
    if len(drawn) < options.rounds:
        raise DataError(
            f"{len(drawn)} rows cannot be dealt out to {options.rounds} rounds",
            hint="give fewer --rounds, shorter answers with --new-tokens, or other rows with --test",
        )
    random.Random(options.seed).shuffle(drawn)  # noqa: S311 - nothing secret
    return drawn


def _by_length(options: BenchmarkOptions, prompts: Prompts, texts: Sequence[str], *, room: int) -> dict[int | None, list[str]]:
    """Prompts of each requested length. A length that the rows cannot be brought to is reported and left out."""
    found: dict[int | None, list[str]] = {}
    for length in options.lengths:
        if length > room:
            logger.warning(f"length {length} is left out: a prompt has room for {room} tokens")
            continue
        made = prompts.of_length(texts, length, count=ROWS_OF_LENGTH)
        if len(made) < options.rounds:
            logger.warning(f"length {length} is left out: of the rows no more than {len(made)} can be brought to it")
            continue
        found[length] = made
    return found
