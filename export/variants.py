"""Make and verify the variants of a bundle. Imports torch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from export import checkpoint as checkpoints
from export import convert, graph, library_answers, model_timing, optimize, verify
from export.batch_mates import batch_difference, batch_gate
from export.data import prepare_rows, sample_indices, write_evaluation
from export.export_options import ExportOptions
from export.export_source import ExportSource
from export.model_inputs import TYPES, bind_padding, fed_inputs
from export.original import one_thread, original_run, require_length, require_no_types, usable_device
from export.output_head import add_output_head
from export.rows import EncodedRows
from export.variant_graph import VariantGraph, make_graph
from serving.artifact import json_ready, provenance
from serving.bundle import served_code
from serving.errors import ExportError
from serving.manifests import (
    BundleManifest,
    OriginalCheckpoint,
    OriginalFigures,
    ReferenceCheck,
    StageInputs,
    VariantFigures,
    VariantRecord,
)
from serving.options import CPU_PRECISIONS, ComputeDevice, Precision
from serving.reporting import logger
from serving.runtime.tokenization import FIELDS, TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True)
class _VariantContext:
    """Everything that the export and verification of one variant needs.

    Attributes:
        source: The checkpoint and its rows.
        options: Options of the stage.
        device: The device for all variants except those for CPUs.
        raw: The graph as it was converted.
        rows: The rows as model inputs.
        original: The original's outputs for them.
        staging: The bundle's folder.
    """

    source: ExportSource
    options: ExportOptions
    device: ComputeDevice
    raw: Path
    rows: EncodedRows
    original: verify.OriginalOutputs
    staging: Path

    def file(self, precision: str) -> Path:
        """Return the path of the variant's graph."""
        return self.staging / precision / "model.onnx"


@dataclass(frozen=True, kw_only=True)
class _Variant:
    """A variant that was made and verified. The batch difference is that of :func:`export.batch_mates.batch_difference`."""

    graph: VariantGraph
    verdict: verify.VariantVerdict
    batch_difference: float | None
    bytes: int
    operators: dict[str, int]


def build(source: ExportSource, options: ExportOptions, staging: Path, inputs: StageInputs) -> BundleManifest:
    """Fill ``staging`` with the bundle's files.

    Args:
        source: The checkpoint and its rows.
        options: Options of the stage.
        staging: An empty folder.
        inputs: What the stage reads.

    Returns:
        The manifest, without the checksums of the files.

    Raises:
        ArtifactError: The checkpoint or its tokenizer cannot be loaded.
        ExportError: A graph could not be made, the tokenizer cannot be served, or the original's outputs are NaN or infinite.
        SetupError: The device is not usable.
    """
    device = usable_device(options.device)
    convert.require_supported(source.config, type(source.encoder_task))
    tokenizer = checkpoints.load_tokenizer(source.folder)
    source = replace(source, task=checkpoints.bind_tokenizer(source.encoder_task, tokenizer, source.name))
    max_length = _max_length(source, options, tokenizer)
    model = checkpoints.load_model(source.folder, type(source.encoder_task), tokenizer)
    padding = bind_padding(tokenizer, model, source.name)
    _copy_files(source, tokenizer, max_length, staging)
    run = original_run(model, source.encoder_task, device="cuda" if device == "gpu" else "cpu")
    with tempfile.TemporaryDirectory(dir=staging.parent, prefix=".export.") as work:
        logger.info(f"converting {source.name} to ONNX")
        raw = convert.convert(source.folder, type(source.encoder_task), Path(work), opset=options.opset)
        output_head = add_output_head(raw, source.encoder_task)
        names = _input_names(raw, fed_inputs(tokenizer, model), run, max_length)
        require_length(run, names, max_length, padding={tokenizer.pad_token_id, model.config.pad_token_id})
        encoder = TextEncoder(
            str(staging / "tokenizer.json"),
            max_length=max_length,
            names=names,
            padding=padding,
            split_special_tokens=tokenizer.split_special_tokens,
        )
        prepared = prepare_rows(source.rows, source.encoder_task, encoder, location="the rows to verify on", training=False)
        source = replace(source, rows=prepared)
        write_evaluation(source.rows, staging)
        rows = _rows(source, options, encoder, tokenizer, names, max_length)
        original = _original_outputs(run, source, rows)
        context = _VariantContext(
            source=source, options=options, device=device, raw=raw, rows=rows, original=original, staging=staging
        )
        variants = {precision: _variant(precision, context) for precision in options.precisions}
        comparison = _compare_with_library(context, variants, encoder)
    manifest = _manifest(context, variants, run, inputs, comparison=comparison, encoder=encoder, output_head=output_head)
    _remove_failed(variants, context)
    return manifest


def _max_length(source: ExportSource, options: ExportOptions, tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the maximum number of tokens per row, and report it, because truncation changes answers."""
    recommended = source.recommended_length
    max_length = checkpoints.resolve_max_length(source.max_length, tokenizer, source.config, default=None, recommended=recommended)
    if options.max_length is not None:
        reason = "as requested"
    elif source.max_length is not None:
        reason = "as in fine-tuning"
    elif recommended is not None:
        reason = "as the checkpoint recommends (--max-length changes this)"
    else:
        reason = "the model's limit (--max-length reduces this)"
    logger.info(f"rows are truncated at {max_length} tokens, {reason}")
    return max_length


def _rows(
    source: ExportSource,
    options: ExportOptions,
    encoder: TextEncoder,
    tokenizer: PreTrainedTokenizerFast,
    names: list[str],
    max_length: int,
) -> EncodedRows:
    """Return the rows to verify on as model inputs, after checking that the served tokenizer and graph give the same ones."""
    rows = EncodedRows(
        source.rows.take(sample_indices(len(source.rows), options.verify_rows, options.seed)), source.encoder_task, encoder
    )
    rows.require_equal(tokenizer, names, max_length)
    rows.require_plain_types(names)
    return rows


def _original_outputs(run: verify.Run, source: ExportSource, rows: EncodedRows) -> verify.OriginalOutputs:
    outputs = verify.compute_outputs(run, rows, source.encoder_task, rows.batches(verify.BATCH), title="PyTorch")
    verify.require_finite(outputs)
    return verify.OriginalOutputs(task=source.encoder_task, outputs=outputs, origins=rows.origins, references=rows.references)


def _manifest(
    context: _VariantContext,
    variants: Mapping[Precision, _Variant],
    run: verify.Run,
    inputs: StageInputs,
    *,
    comparison: ReferenceCheck,
    encoder: TextEncoder,
    output_head: str | None,
) -> BundleManifest:
    """Measure the speed of the original and of every variant, and describe the bundle."""
    task, options = context.source.encoder_task, context.options
    logger.info("measuring speed")
    runs = {"original": run} | {precision: _run(precision, context, threads=1) for precision in variants}
    with one_thread():
        timings = model_timing.speeds(runs, context.rows, seed=options.seed)
    warning = verify.few_rows_warning(len(context.rows))
    return BundleManifest(
        **provenance(inputs),
        name=options.name,
        task=options.task,
        labels=task.labels,
        settings=json_ready(task.served.to_settings()),
        evaluation_settings=json_ready(task.evaluation_settings),
        verified_with=served_code(task.name),
        main_metric=task.main_metric,
        device=context.device,
        warnings=(warning,) if warning else (),
        original=_original(context, timings["original"]),
        reference=comparison,
        precisions={
            precision: VariantRecord(
                file=f"{precision}/model.onnx",
                verdict="passed" if variant.verdict.passed else "failed",
                gates=variant.verdict.gates,
                figures=_figures(variant, timings[precision], _device(precision, context)),
            )
            for precision, variant in variants.items()
        },
        max_length=encoder.max_length,
        max_positions=checkpoints.max_positions(context.source.config),
        model_inputs=encoder.names,
        padding=encoder.padding,
        split_special_tokens=encoder.tokenizer.encode_special_tokens,
        output_head=output_head,
        opset=options.opset,
    )


def _original(context: _VariantContext, timing: model_timing.ModelTiming) -> OriginalFigures:
    source = context.source
    checkpoint = OriginalCheckpoint(name=source.name, sha256=checkpoints.weights_sha256(source.folder))
    return OriginalFigures(
        **verify.task_metrics(context.original),
        rows=len(context.rows),
        bytes=checkpoints.weights_size(source.folder),
        checkpoint=checkpoint,
        latency_ms=timing.latency_ms,
        throughput=timing.throughput,
        speed_device=context.device,
    )


def _figures(variant: _Variant, timing: model_timing.ModelTiming, device: ComputeDevice) -> VariantFigures:
    verdict = variant.verdict
    return VariantFigures(
        **verdict.metrics,
        metric_drop=verdict.metric_drop,
        label_agreement=verdict.label_agreement,
        row_agreement=verdict.row_agreement,
        ties=verdict.ties,
        p99_score_change=verdict.p99_score_change,
        max_score_change=verdict.max_score_change,
        max_logit_difference=verdict.max_logit_difference,
        mean_logit_difference=verdict.mean_logit_difference,
        max_batch_difference=variant.batch_difference,
        fusion=variant.graph.fusion,
        fp32_nodes=variant.graph.fp32_nodes,
        bytes=variant.bytes,
        operators=variant.operators,
        latency_ms=timing.latency_ms,
        throughput=timing.throughput,
        speed_device=device,
    )


def _copy_files(source: ExportSource, tokenizer: PreTrainedTokenizerFast, max_length: int, staging: Path) -> None:
    shutil.copyfile(source.folder / "config.json", staging / "config.json")
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save_tokenizer(tokenizer, Path(folder), max_length)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(Path(folder) / name, staging / name)


def _remove_failed(variants: Mapping[Precision, _Variant], context: _VariantContext) -> None:
    for precision, variant in variants.items():
        if not variant.verdict.passed:
            shutil.rmtree(context.file(precision).parent)


def _input_names(raw: Path, fed: Sequence[str], run: verify.Run, max_length: int) -> list[str]:
    """Return the inputs of the raw graph, after removing those that the checkpoint's tokenizer does not give."""
    names = graph.input_names(raw)
    if unknown := [name for name in names if name not in FIELDS]:
        raise ExportError(f"unsupported model inputs: {', '.join(unknown)}; a tokenizer provides only {', '.join(FIELDS)}")
    if TYPES in fed and TYPES not in names:
        require_no_types(run, max_length)
    if TYPES in names and TYPES not in fed:
        graph.remove_token_types(raw)
        names.remove(TYPES)
    return names


def _compare_with_library(context: _VariantContext, variants: Mapping[Precision, _Variant], encoder: TextEncoder) -> ReferenceCheck:
    """Compare the answers of fp32, or of the raw graph if fp32 is not asked for, with those of the checkpoint's library."""
    source = context.source
    if "fp32" in variants and not variants["fp32"].verdict.passed:  # the export ends with its figures
        return ReferenceCheck(library=source.encoder_task.library_name, texts=0, max_difference=0)
    run = (
        _run("fp32", context) if "fp32" in variants else graph.runner(graph.session(context.raw), source.encoder_task.model_outputs)
    )
    served = library_answers.ServedGraph(task=source.encoder_task, run=run, encoder=encoder, max_length=encoder.max_length)
    options = {
        name: value for name, value in source.chosen.items() if name in source.encoder_task.served.options and name != "truncation"
    }
    tokenizer = checkpoints.load_tokenizer(source.folder)
    model = checkpoints.load_model(source.folder, type(source.encoder_task), tokenizer)
    bind_padding(tokenizer, model, source.name)
    model.to("cuda" if context.device == "gpu" else "cpu")
    return library_answers.require_equal_answers(served, model, tokenizer, source.encoder_task.requests(source.rows.texts), options)


def _variant(precision: Precision, context: _VariantContext) -> _Variant:
    """Export and verify one variant."""
    logger.info(f"exporting and verifying {precision}")
    path = context.file(precision)
    made = make_graph(precision, context.raw, path, checkpoint=context.source.folder, rows=context.rows)
    rows = context.rows
    # the int8 answer to a row depends on the other rows of its batch, so it is verified as it is served: one request at a time
    batches = rows.request_batches() if precision == "int8" else rows.batches(verify.BATCH)
    run = _run(precision, context)
    outputs = verify.compute_outputs(run, rows, context.source.encoder_task, batches, title=precision)
    options = context.options
    limits = verify.GateLimits(
        max_metric_drop=options.max_metric_drop,
        min_agreement=options.min_agreement,
        min_row_agreement=options.min_row_agreement,
    )
    verdict = verify.verify_variant(precision, context.original, outputs, limits)
    gates, difference = made.gates, None
    if precision in CPU_PRECISIONS:
        difference = batch_difference(run, rows, seed=options.seed)
    if precision == "int8_rowwise":
        gates = (*gates, batch_gate(difference, context.original.largest))
    verdict = replace(verdict, gates=(*verdict.gates, *gates))
    size, operators = graph.size(path), optimize.operators(path)
    return _Variant(graph=made, verdict=verdict, batch_difference=difference, bytes=size, operators=operators)


def _device(precision: Precision, context: _VariantContext) -> ComputeDevice:
    """Return the device that a variant is verified and timed on: the CPU for int8, which has no GPU kernels."""
    return "cpu" if precision in CPU_PRECISIONS else context.device


def _run(precision: Precision, context: _VariantContext, *, threads: int = 0) -> verify.Run:
    on_cpu = _device(precision, context) == "cpu"
    providers = ["CPUExecutionProvider"] if on_cpu else [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
    session = graph.session(context.file(precision), providers=providers, threads=threads)
    return graph.runner(session, context.source.encoder_task.model_outputs)
