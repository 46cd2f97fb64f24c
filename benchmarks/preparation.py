"""Read what a benchmark measures: bundle, original and rows."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.benchmark_options import BenchmarkOptions
from benchmarks.inputs import BenchmarkInputs, BenchmarkRows
from benchmarks.original_checkpoint import find_original
from benchmarks.row_lengths import rows_of_length
from benchmarks.served_package import read_package, require_same_bundle
from export import convert, graph
from export.data import encode_labels, prepare_rows, read_evaluation, sample_indices
from export.output_head import add_output_head
from export.sources import load_rows
from export.tasks import bundle_task
from serving.bundle import Bundle, load_bundle
from serving.errors import DataError
from serving.machine import resolve_device
from serving.original_location import QUICKSTART
from serving.reporting import logger, plural


def read_inputs(options: BenchmarkOptions) -> BenchmarkInputs:
    """Read and check what is measured. The graph as exported is not made yet.

    Raises:
        ArtifactError: There is no usable bundle, it lacks a requested precision, or the checkpoint is not its original.
        DataError: The rows cannot be read, or are too few.
    """
    bundle = load_bundle(options.bundle_folder)
    precisions: tuple[str, ...] = options.precisions or tuple(bundle.variants)
    for precision in precisions:
        bundle.variant(precision)  # an error now rather than minutes later
    if not options.in_process:  # all is measured at the length that is served
        package = read_package(options.repository, options.name)
        require_same_bundle(package, options.bundle_folder)
        bundle = bundle.with_max_length(package.manifest.max_length)
    checkpoint = find_original(options, bundle)
    return BenchmarkInputs(
        options=options,
        bundle=bundle,
        checkpoint=checkpoint,
        rows=read_rows(options, bundle),
        precisions=precisions,
        device=resolve_device(options.device),
    )


def exported_graph(inputs: BenchmarkInputs, folder: Path) -> Path:
    """Export the graph without any optimization, with the task's output head: a bundle does not keep it."""
    logger.info("exporting the graph as it was before it was fused")
    bundle, task = inputs.bundle, inputs.task
    raw = convert.convert(inputs.checkpoint, type(task), folder, opset=bundle.manifest.opset)
    add_output_head(raw, task)
    return raw


def read_rows(options: BenchmarkOptions, bundle: Bundle) -> BenchmarkRows:
    """Read the labelled rows and draw the timed rows from them.

    Raises:
        DataError: The rows cannot be read, are of another task, or are too few.
    """
    task = bundle_task(bundle)
    if options.test is None:
        labelled = read_evaluation(bundle.folder, task)
    else:
        cache = options.artifacts / QUICKSTART
        found = encode_labels(load_rows(options.test, options.columns, type(task), split="test", cache=cache), task)
        labelled = prepare_rows(found, task, bundle.encoder(model_inputs(bundle)), location=options.test, training=False)
    if len(labelled.texts) != task.text_columns:
        raise DataError(
            f"the model takes {task.text_columns} {plural(task.text_columns, 'text')} a row, the rows have {len(labelled.texts)}",
            hint="name the columns with --text-column and --text-pair-column",
        )
    rows = [list(row) for row in zip(*task.requests(labelled.texts), strict=True)]
    timed = [rows[index] for index in sample_indices(len(rows), options.rows, options.seed)]
    if len(timed) < options.rounds:
        raise DataError(
            f"{len(timed)} rows cannot be dealt out to {options.rounds} rounds",
            hint="give fewer --rounds, or more rows to time: --rows",
        )
    random.Random(options.seed).shuffle(timed)  # noqa: S311 - nothing secret; files are often sorted, by label or by length
    return BenchmarkRows(timed={None: timed, **_by_length(options, bundle, timed)}, labelled=rows, references=list(labelled.labels))


def _by_length(options: BenchmarkOptions, bundle: Bundle, rows: list[list[str]]) -> dict[int | None, list[list[str]]]:
    """Rows of each requested length. A length that the rows cannot be brought to is reported and left out."""
    found: dict[int | None, list[list[str]]] = {}
    names = model_inputs(bundle)
    for length in options.lengths:
        if length > bundle.max_length:
            logger.warning(f"length {length} is left out: rows are truncated at {bundle.max_length} tokens")
            continue
        made = rows_of_length(bundle, names, rows, length)
        if len(made) < options.rounds:
            logger.warning(f"length {length} is left out: of the rows no more than {len(made)} can be brought to it")
            continue
        found[length] = made
    return found


def model_inputs(bundle: Bundle) -> list[str]:
    """Names of the inputs of the bundle's graphs."""
    return graph.input_names(next(iter(bundle.variants.values())).path)
