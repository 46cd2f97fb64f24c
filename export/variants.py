"""Make each variant of a bundle and verify it. Imports torch."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from export import checkpoint as checkpoints
from export import convert, graph, optimize, verify
from export.bundle import ExportOptions, Source
from export.data import sample, write_evaluation
from export.original import one_thread, original_run, require_length, resolve_device
from export.rows import EncodedRows
from serving.errors import ExportError
from serving.runtime.tasks.base import Task
from serving.runtime.tokenization import FIELDS, TextEncoder

PROBED = 32
"""So many of the longest rows, and as many of the others, are run with everything visible to find what overflows in fp16."""


@dataclass(frozen=True, kw_only=True)
class _Workshop:
    """What making any variant needs."""

    source: Source
    options: ExportOptions
    task: Task
    device: str
    raw: Path
    rows: EncodedRows
    original: verify.Logits
    staging: Path


def build(source: Source, options: ExportOptions, staging: Path) -> dict[str, Any]:
    """Fill ``staging`` with the bundle's files.

    Returns:
        What the manifest says about them.

    Raises:
        ArtifactError: the checkpoint or its tokenizer cannot be loaded.
        ExportError: a graph could not be made, or the tokenizer cannot be served.
        SetupError: there is no such device.
    """
    device = resolve_device(options.device)
    convert.require_supported(source.config, type(source.task))
    tokenizer = checkpoints.load_tokenizer(source.folder)
    max_length = checkpoints.chosen_max_length(source.max_length, tokenizer, source.config)
    padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    _copy_files(source, tokenizer, staging)
    run = original_run(checkpoints.load_model(source.folder, type(source.task)), source.task, device="cuda" if device == "gpu" else "cpu")
    with tempfile.TemporaryDirectory(dir=staging.parent) as work:
        click.echo(f"converting {source.name} to ONNX", err=True)
        raw = convert.convert(source.folder, type(source.task), Path(work), opset=options.opset)
        names = _input_names(raw)
        require_length(run, names, max_length)
        encoder = TextEncoder(str(staging / "tokenizer.json"), max_length=max_length, names=names, padding=padding)
        rows = EncodedRows(source.rows.take(sample(len(source.rows), options.verify_rows, options.seed)), source.task, encoder)
        rows.require_equal(tokenizer, names, max_length)
        original = verify.logits_of(run, rows, batch_size=verify.BATCH, title="PyTorch")
        figures = verify.task_metrics(source.task, original, rows.labels) | {"rows": len(rows)}
        with one_thread():
            figures |= verify.speed(run, rows, seed=options.seed)
        workshop = _Workshop(source=source, options=options, task=source.task, device=device, raw=raw, rows=rows, original=original,
                             staging=staging)
        records = {precision: _variant(precision, workshop) for precision in options.precisions}
    return {
        "task": options.task,
        "labels": list(source.task.settings()["labels"]),
        "max_length": max_length,
        "settings": source.task.settings(),
        "padding": padding,
        "main_metric": source.task.main_metric,
        "device": device,
        "original": figures | {"checkpoint": {"name": source.name, "sha256": checkpoints.weights_sha256(source.folder)}},
        "precisions": records,
    }


def _copy_files(source: Source, tokenizer: Any, staging: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save_tokenizer(tokenizer, Path(folder))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(Path(folder) / name, staging / name)
    shutil.copyfile(source.folder / "config.json", staging / "config.json")
    write_evaluation(source.rows, staging)


def _input_names(raw: Path) -> list[str]:
    names = graph.input_names(graph.load(raw))
    if unknown := [name for name in names if name not in FIELDS]:
        raise ExportError(f"the model takes {', '.join(unknown)}, which no tokenizer gives; known are {', '.join(FIELDS)}")
    return names


def _variant(precision: str, workshop: _Workshop) -> dict[str, Any]:
    click.echo(f"making and verifying {precision}", err=True)
    file = f"{precision}/model.onnx"
    path = workshop.staging / file
    made, gates = _MAKERS[precision](path, workshop)
    # int8 operators exist on the CPU; a row's int8 answer depends on its batch mates, so it is judged as it is served: alone
    on_cpu = precision == "int8" or workshop.device == "cpu"
    providers = ["CPUExecutionProvider"] if on_cpu else [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
    batch_size = 1 if precision == "int8" else verify.BATCH
    run = graph.runner(graph.session(path, providers=providers), workshop.task.logits)
    logits = verify.logits_of(run, workshop.rows, batch_size=batch_size, title=precision)
    verdict = verify.judge(precision, workshop.task, workshop.original, logits, workshop.rows.labels, _limits(workshop.options), gates)
    alone = graph.runner(graph.session(path, providers=providers, threads=1), workshop.task.logits)
    verdict.figures.update(made, bytes=graph.size(path), operators=optimize.operators(path),
                           **verify.speed(alone, workshop.rows, seed=workshop.options.seed))
    if not verdict.passed:
        shutil.rmtree(path.parent)
    return verdict.record(file)


def _limits(options: ExportOptions) -> verify.Limits:
    return verify.Limits(max_metric_drop=options.max_metric_drop, min_agreement=options.min_agreement)


Made = tuple[dict[str, Any], list[verify.Gate]]
"""Figures about how a variant was made, and gates of its own."""


def _make_fp32(path: Path, workshop: _Workshop) -> Made:
    return {"fusion": optimize.fuse(workshop.raw, workshop.source.folder, path), "fp32_nodes": []}, []


def _make_fp16(path: Path, workshop: _Workshop) -> Made:
    order = workshop.rows.by_length()
    feeds = [workshop.rows.feed([index]) for index in order[:PROBED] + order[PROBED:][::max(1, (len(order) - PROBED) // PROBED)][:PROBED]]
    with tempfile.TemporaryDirectory() as folder:
        fused = Path(folder) / "model.onnx"
        fusion = optimize.fuse(workshop.raw, workshop.source.folder, fused)
        kept = optimize.to_fp16(fused, path, feeds)
        overflowed = optimize.overflowed(path, fused, feeds)
    return {"fusion": fusion, "fp32_nodes": kept}, [verify.overflow_gate(overflowed)]


def _make_int8(path: Path, workshop: _Workshop) -> Made:
    optimize.to_int8(workshop.raw, path)
    return {"fusion": "none: ONNX Runtime fuses it when it loads it", "fp32_nodes": []}, []


_MAKERS = {"fp32": _make_fp32, "fp16": _make_fp16, "int8": _make_int8}
