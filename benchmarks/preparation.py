"""What is asked of a benchmark → what it measures: bundle, original and rows, read and checked."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparing.compare import Allowed
from benchmarks.in_process import require_original
from benchmarks.inputs import BenchmarkInputs, BenchmarkRows, OpenLoop
from benchmarks.row_lengths import rows_of_length
from benchmarks.served import Endpoint
from export import convert, graph, tails
from export.columns import Columns
from export.data import LabelledRows, encode_labels, read_evaluation, sample
from export.sources import checkpoint_folder, load_rows
from serving.bundle import Bundle, load_bundle
from serving.errors import DataError

QUICKSTART_CACHE = "quickstart"


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What to measure.

    Args:
        checkpoint: the original: a folder, or a name on the Hub.
        repository: model repository that the running server was started on.
        endpoint: the running server; None measures in process only.
        server_environment: folder of the environment that carries ``perf_analyzer``.
        precisions: ONNX variants to run in process; empty for all of the bundle.
        exported: run the graph as Optimum exports it too.
        compiled: run the original through ``torch.compile`` too.
        batches: rows per call in process.
        lengths: tokens of rows that all have one length, beside those as they are.
        open_loops: how the server is asked beside that.
        test: other labelled rows than the bundle's own; None for those.
        rows: texts that speed is measured on, drawn at random from the labelled rows.
        duration: seconds of timing per figure, split over the rounds.
        rounds: how often every way of answering gets its turn, on rows of its own each time.
        gates: expressions, see :mod:`benchmarks.gates`.
        baseline: ``report.json`` of an earlier run, or its folder.
        allowed: how much worse than ``baseline`` a figure may be.
        junit: file to write gates and the comparison to as well, as JUnit XML.
        output: folder to write.
    """

    name: str
    bundle: Path
    checkpoint: str
    repository: Path
    artifacts: Path
    endpoint: Endpoint | None
    server_environment: Path
    precisions: tuple[str, ...]
    exported: bool
    compiled: bool
    device: str
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    protocols: tuple[str, ...]
    concurrencies: tuple[int, ...]
    open_loops: tuple[OpenLoop, ...]
    test: str | None
    columns: Columns
    rows: int
    duration: float
    rounds: int
    gates: tuple[str, ...]
    baseline: Path | None
    allowed: Allowed
    junit: Path | None
    output: Path
    seed: int


def read_inputs(options: BenchmarkOptions, say: Callable[[str], None]) -> BenchmarkInputs:
    """Read and check what is measured; the graph as exported is not made yet.

    Args:
        say: told which lengths are left out, and why.

    Raises:
        ArtifactError: no usable bundle, it lacks a precision asked for, or the checkpoint is not its original.
        DataError: the rows cannot be read, or are too few.
    """
    bundle = load_bundle(options.bundle)
    precisions = options.precisions or tuple(bundle.variants)
    for precision in precisions:
        bundle.variant(precision)  # an error now rather than minutes later
    checkpoint = checkpoint_folder(options.checkpoint, options.artifacts / QUICKSTART_CACHE)
    require_original(bundle, checkpoint)
    return BenchmarkInputs(
        bundle=bundle,
        checkpoint=checkpoint,
        rows=_rows(options, bundle, say),
        precisions=precisions,
        exported=None,
        compiled=options.compiled,
        device=options.device,
        batches=options.batches,
        protocols=options.protocols,
        concurrencies=options.concurrencies,
        open_loops=options.open_loops,
        duration=options.duration,
        rounds=options.rounds,
    )


def exported_graph(inputs: BenchmarkInputs, folder: Path, say: Callable[[str], None]) -> Path:
    """The graph before anything was done to it but what the task itself needs at its end: a bundle does not keep it."""
    say("exporting the graph as it was before it was fused")
    bundle = inputs.bundle
    raw = convert.convert(inputs.checkpoint, type(bundle.task), folder, opset=bundle.manifest.opset)
    tails.add_tail(raw, bundle.task)
    return raw


def _rows(options: BenchmarkOptions, bundle: Bundle, say: Callable[[str], None]) -> BenchmarkRows:
    labelled = _labelled(options, bundle)
    if len(labelled.texts) != bundle.task.text_columns:
        raise DataError(
            f"the model takes {bundle.task.text_columns} texts a row, the rows have {len(labelled.texts)}",
            hint="name the columns with --text-column and --text-pair-column",
        )
    rows = [list(row) for row in zip(*bundle.task.requests(labelled.texts), strict=True)]
    timed = [rows[index] for index in sample(len(rows), options.rows, options.seed)]
    if len(timed) < options.rounds:
        raise DataError(
            f"{len(timed)} rows cannot be dealt out to {options.rounds} rounds",
            hint="give fewer --rounds, or more rows to time: --rows",
        )
    random.Random(options.seed).shuffle(timed)  # noqa: S311 - nothing secret; files are often sorted, by label or by length
    return BenchmarkRows(
        timed={None: timed, **_by_length(options, bundle, timed, say)}, labelled=rows, references=list(labelled.labels)
    )


def _by_length(
    options: BenchmarkOptions, bundle: Bundle, rows: list[list[str]], say: Callable[[str], None]
) -> dict[int | None, list[list[str]]]:
    """Rows of each length asked for; one that cannot be had is told, and left out."""
    found: dict[int | None, list[list[str]]] = {}
    names = model_inputs(bundle)
    for length in options.lengths:
        if length > bundle.max_length:
            say(f"length {length} is left out: rows are cut at {bundle.max_length} tokens")
            continue
        made = rows_of_length(bundle, names, rows, length)
        if len(made) < options.rounds:
            say(f"length {length} is left out: of the rows no more than {len(made)} can be brought to it")
            continue
        found[length] = made
    return found


def model_inputs(bundle: Bundle) -> list[str]:
    """What the bundle's graphs take."""
    return graph.input_names(next(iter(bundle.variants.values())).path)


def _labelled(options: BenchmarkOptions, bundle: Bundle) -> LabelledRows:
    if options.test is None:
        return read_evaluation(bundle.folder, bundle.task)
    found = load_rows(options.test, options.columns, type(bundle.task), split="test", cache=options.artifacts / QUICKSTART_CACHE)
    return encode_labels(found, bundle.task)
