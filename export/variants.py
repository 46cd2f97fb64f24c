"""Make each variant of a bundle and verify it. Imports torch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export import checkpoint as checkpoints
from export import convert, graph, optimize, tails, verify
from export.data import prepare, sample, write_evaluation
from export.export_options import ExportOptions
from export.export_source import ExportSource
from export.original import one_thread, original_run, require_length, usable_device
from export.rows import EncodedRows
from serving.errors import ExportError
from serving.reporting import logger
from serving.runtime.tasks.base import Arrays
from serving.runtime.tokenization import FIELDS, TextEncoder

PROBED = 32
"""So many of the longest rows are run with everything visible to find what overflows in fp16, each padded together with one of
the others, from the shortest up: attention masks overflow too, and show only where there is padding."""


@dataclass(frozen=True, kw_only=True)
class _Workshop:
    """What making and verifying any variant needs: the raw graph, the rows as model inputs, what the original says of them."""

    source: ExportSource
    options: ExportOptions
    device: str
    raw: Path
    rows: EncodedRows
    reference: verify.Reference
    staging: Path

    def file(self, precision: str) -> Path:
        """Where the variant's graph goes."""
        return self.staging / precision / "model.onnx"


def build(source: ExportSource, options: ExportOptions, staging: Path) -> dict[str, Any]:
    """Fill ``staging`` with the bundle's files.

    Returns:
        What the manifest says about them.

    Raises:
        ArtifactError: the checkpoint or its tokenizer cannot be loaded.
        ExportError: a graph could not be made, the tokenizer cannot be served, or the original's logits are no numbers.
        SetupError: there is no such device.
    """
    device = usable_device(options.device)
    convert.require_supported(source.config, type(source.task))
    tokenizer = checkpoints.load_tokenizer(source.folder)
    source = replace(source, task=checkpoints.bind_tokenizer(source.task, tokenizer, source.name))
    max_length = _max_length(source, options, tokenizer)
    padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    _copy_files(source, tokenizer, max_length, staging)
    model = checkpoints.load_model(source.folder, type(source.task))
    run = original_run(model, source.task, device="cuda" if device == "gpu" else "cpu")
    with tempfile.TemporaryDirectory(dir=staging.parent, prefix=".export.") as work:
        logger.info(f"converting {source.name} to ONNX")
        raw = convert.convert(source.folder, type(source.task), Path(work), opset=options.opset)
        tail = tails.add_tail(raw, source.task)
        names = _input_names(raw)
        require_length(run, names, max_length, padding={tokenizer.pad_token_id, source.config.get("pad_token_id")})
        encoder = TextEncoder(str(staging / "tokenizer.json"), max_length=max_length, names=names, padding=padding)
        source = replace(source, rows=prepare(source.rows, source.task, encoder, location="the rows to verify on", training=False))
        write_evaluation(source.rows, staging)
        rows = _rows(source, options, encoder, tokenizer, names, max_length)
        reference = _reference(run, source, rows)
        workshop = _Workshop(
            source=source, options=options, device=device, raw=raw, rows=rows, reference=reference, staging=staging
        )
        verdicts = {precision: _verdict(precision, workshop) for precision in options.precisions}
    original = _original(workshop)
    _measure_speed(run, original, verdicts, workshop)
    _remove_failed(verdicts, workshop)
    return _fields(workshop, original, verdicts) | {"max_length": max_length, "padding": padding, "tail": tail}


def _max_length(source: ExportSource, options: ExportOptions, tokenizer: Any) -> int:
    """Tokens kept of a row, said aloud: a row that is cut unnoticed is answered wrongly unnoticed."""
    chosen = checkpoints.chosen_max_length(source.max_length, tokenizer, source.config, default=source.usual_length)
    if options.max_length is not None:
        reason = "as asked"
    elif source.max_length is not None:
        reason = "as in fine-tuning"
    elif source.usual_length is not None:
        reason = "as the checkpoint says; --max-length cuts them elsewhere"
    else:
        reason = "what the model takes; --max-length cuts them shorter"
    logger.info(f"rows are cut at {chosen} tokens: {reason}")
    return chosen


def _rows(
    source: ExportSource, options: ExportOptions, encoder: TextEncoder, tokenizer: Any, names: list[str], max_length: int
) -> EncodedRows:
    """The rows to verify on, as model inputs that the served tokenizer and graph give too."""
    rows = EncodedRows(source.rows.take(sample(len(source.rows), options.verify_rows, options.seed)), source.task, encoder)
    rows.require_equal(tokenizer, names, max_length)
    rows.require_plain_types(names)
    return rows


def _reference(run: verify.Run, source: ExportSource, rows: EncodedRows) -> verify.Reference:
    outputs = verify.outputs_of(run, rows, source.task, rows.batches(verify.BATCH), title="PyTorch")
    verify.require_finite(outputs)
    return verify.Reference(task=source.task, outputs=outputs, origins=rows.origins, references=rows.references)


def _original(workshop: _Workshop) -> dict[str, Any]:
    source, reference = workshop.source, workshop.reference
    return {
        **verify.task_metrics(reference),
        "rows": len(workshop.rows),
        "bytes": checkpoints.weights_size(source.folder),
        "checkpoint": {"name": source.name, "sha256": checkpoints.weights_sha256(source.folder)},
    }


def _fields(workshop: _Workshop, original: dict[str, Any], verdicts: dict[str, verify.Verdict]) -> dict[str, Any]:
    """The manifest's fields about the variants, and those that later stages read of the task."""
    task = workshop.source.task
    warning = verify.few_rows_warning(len(workshop.rows))
    return {
        "task": workshop.options.task,
        "labels": list(task.settings().get("labels", ())),
        "settings": task.settings(),
        "main_metric": task.main_metric,
        "device": workshop.device,
        "warnings": [warning] if warning else [],
        "original": original,
        "precisions": {precision: verdict.record(f"{precision}/model.onnx") for precision, verdict in verdicts.items()},
    }


def _copy_files(source: ExportSource, tokenizer: Any, max_length: int, staging: Path) -> None:
    shutil.copyfile(source.folder / "config.json", staging / "config.json")
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save_tokenizer(tokenizer, Path(folder), max_length)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(Path(folder) / name, staging / name)


def _remove_failed(verdicts: dict[str, verify.Verdict], workshop: _Workshop) -> None:
    for precision, verdict in verdicts.items():
        if not verdict.passed:
            shutil.rmtree(workshop.file(precision).parent)


def _input_names(raw: Path) -> list[str]:
    names = graph.input_names(raw)
    if unknown := [name for name in names if name not in FIELDS]:
        raise ExportError(f"the model takes {', '.join(unknown)}, which no tokenizer gives; known are {', '.join(FIELDS)}")
    return names


def _verdict(precision: str, workshop: _Workshop) -> verify.Verdict:
    logger.info(f"making and verifying {precision}")
    path = workshop.file(precision)
    made, gates = _MAKERS[precision](path, workshop)
    rows = workshop.rows
    # a row's int8 answer depends on its batch mates, so it is judged as it is served: with those of its own request alone
    batches = rows.alone() if precision == "int8" else rows.batches(verify.BATCH)
    outputs = verify.outputs_of(_run(precision, workshop), rows, workshop.source.task, batches, title=precision)
    limits = verify.Limits(max_metric_drop=workshop.options.max_metric_drop, min_agreement=workshop.options.min_agreement)
    verdict = verify.judge(precision, workshop.reference, outputs, limits)
    figures = verdict.figures | made | {"bytes": graph.size(path), "operators": optimize.operators(path)}
    return replace(verdict, figures=figures, gates=(*verdict.gates, *gates))


def _device(precision: str, workshop: _Workshop) -> str:
    """Where the variant is verified and timed: the GPU has no kernels for dynamic int8."""
    return "cpu" if precision == "int8" else workshop.device


def _run(precision: str, workshop: _Workshop, *, threads: int = 0) -> verify.Run:
    on_cpu = _device(precision, workshop) == "cpu"
    providers = ["CPUExecutionProvider"] if on_cpu else [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
    session = graph.session(workshop.file(precision), providers=providers, threads=threads)
    return graph.runner(session, workshop.source.task.outputs_read)


def _measure_speed(run: verify.Run, original: dict[str, Any], verdicts: dict[str, verify.Verdict], workshop: _Workshop) -> None:
    """Add speed figures to the original's and every variant's, and where they were measured: unlike ones must not be compared."""
    logger.info("measuring speed")
    runs = {"original": run} | {precision: _run(precision, workshop, threads=1) for precision in verdicts}
    with one_thread():
        measured = verify.speeds(runs, workshop.rows, seed=workshop.options.seed)
    original |= measured["original"] | {"speed_device": workshop.device}
    for precision, verdict in verdicts.items():
        verdict.figures.update(measured[precision] | {"speed_device": _device(precision, workshop)})


Made = tuple[dict[str, Any], list[verify.Gate]]
"""Figures about how a variant was made, and gates of its own."""


def _make_fp32(path: Path, workshop: _Workshop) -> Made:
    return {"fusion": optimize.fuse(workshop.raw, workshop.source.folder, path), "fp32_nodes": []}, []


def _make_fp16(path: Path, workshop: _Workshop) -> Made:
    feeds = _probes(workshop.rows)
    with tempfile.TemporaryDirectory() as folder:
        fused = Path(folder) / "model.onnx"
        fusion = optimize.fuse(workshop.raw, workshop.source.folder, fused)
        kept = optimize.to_fp16(fused, path, feeds)
        overflowed = optimize.overflowed(path, fused, feeds)
    return {"fusion": fusion, "fp32_nodes": kept}, [verify.overflow_gate(overflowed)]


def _probes(rows: EncodedRows) -> Sequence[Arrays]:
    order = rows.by_length()
    longest, others = order[:PROBED], order[PROBED:] or order
    partners = [others[-1 - place * len(others) // len(longest)] for place in range(len(longest))]
    return [rows.feed(pair) for pair in zip(longest, partners, strict=True)]


def _make_int8(path: Path, workshop: _Workshop) -> Made:
    optimize.to_int8(workshop.raw, path)
    return {"fusion": "none: ONNX Runtime fuses it when it loads it", "fp32_nodes": []}, []


_MAKERS = {"fp32": _make_fp32, "fp16": _make_fp16, "int8": _make_int8}
