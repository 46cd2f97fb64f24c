"""Makes the bundle of a checkpoint that generates: its variants, their figures and the files that serving needs. Imports torch."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from export import checkpoint as checkpoints
from export.data import prepare_rows, sample_indices, write_evaluation
from export.export_options import ExportOptions
from export.export_source import ExportSource
from export.generation.decoder_gates import GenerationLimits
from export.generation.decoder_variants import DecoderExport, DecoderRows, DecoderVariant, build_decoder
from export.generation.decoding_speed import DecodingSpeed
from export.original import usable_device
from serving.artifact import json_ready, provenance
from serving.bundle import served_code
from serving.errors import ArtifactError, first_line
from serving.manifests import (
    BundleManifest,
    GenerationVariantFigures,
    OriginalCheckpoint,
    OriginalFigures,
    ReferenceCheck,
    StageInputs,
    Throughput,
    VariantRecord,
)
from serving.reporting import logger
from serving.runtime.tokenization import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from export.tasks._generation import ExportedGenerationTask

LONGEST = 2048
"""Default limit of a prompt and its answer together, in tokens: a cache of more takes much memory, see ``package --capacity``."""
METRIC = "perplexity"
"""The figure of a decoder that the gates compare."""
COPIED = ("config.json", "generation_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


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
        ArtifactError: The checkpoint or its tokenizer cannot be loaded, or its ``generation_config.json`` asks for what is not
            supported.
        ExportError: A graph could not be made, or the original's outputs are NaN or infinite.
        SetupError: The device is not usable.
    """
    device = usable_device(options.device)
    tokenizer = checkpoints.load_tokenizer(source.folder, pads_with_end=True)
    task = checkpoints.bind_tokenizer(source.generation_task, tokenizer, source.name)
    model = checkpoints.load_model(source.folder, type(task), tokenizer)
    try:
        task = task.bound_to(model, tokenizer, source.config)
    except ValueError as error:
        raise ArtifactError(
            f"{source.name} cannot be served as it generates: {first_line(error)}", hint="see its generation_config.json"
        ) from error
    max_length = _max_length(source, options)
    _copy_files(source, tokenizer, max_length, staging)
    rows = _rows(source, options, task, tokenizer, staging, max_length)
    limits = GenerationLimits(
        max_perplexity_increase=None if options.max_perplexity_increase is None else options.max_perplexity_increase / 100,
        min_token_agreement=options.min_agreement,
    )
    precisions = options.precisions
    logger.info(f"converting {source.name} to ONNX")
    made = build_decoder(model, rows, staging, precisions=precisions, limits=limits, opset=options.opset)
    for precision, variant in made.variants.items():
        if not variant.passed:
            shutil.rmtree(staging / precision)
    return BundleManifest(
        **provenance(inputs),
        name=options.name,
        task=options.task,
        labels=(),
        settings=json_ready(task.served.to_settings()),
        evaluation_settings=json_ready(task.evaluation_settings),
        verified_with=served_code(task.name),
        main_metric=METRIC,
        device=device,
        warnings=(),
        original=_original(source, made),
        reference=_reference(made),
        precisions={precision: _record(variant, made) for precision, variant in made.variants.items()},
        max_length=min(max_length, made.layout.max_tokens or max_length),
        max_positions=made.layout.max_tokens,
        model_inputs=("input_ids",),
        padding={},
        split_special_tokens=tokenizer.split_special_tokens,
        output_head=None,
        opset=options.opset,
    )


def _max_length(source: ExportSource, options: ExportOptions) -> int:
    """Return the tokens of a prompt and its answer that are served by default, and report them."""
    positions = checkpoints.max_positions(source.config)
    if options.max_length is not None and positions is not None and options.max_length > positions:
        raise ArtifactError(
            f"the model takes at most {positions} tokens, not {options.max_length}", hint=f"give --max-length {positions} or less"
        )
    found = options.max_length or min(LONGEST, positions or LONGEST)
    reason = "as requested" if options.max_length else "the model's limit" if found == positions else "--max-length changes this"
    logger.info(f"a prompt and its answer may have {found} tokens together ({reason})")
    return found


def _copy_files(source: ExportSource, tokenizer: PreTrainedTokenizerFast, max_length: int, staging: Path) -> None:
    for name in COPIED:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, staging / name)
    folder = staging / "tokenizer"
    checkpoints.save_tokenizer(tokenizer, folder, max_length, longer_texts=True)
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            (folder / name).rename(staging / name)
    shutil.rmtree(folder)


def _rows(
    source: ExportSource,
    options: ExportOptions,
    task: ExportedGenerationTask,
    tokenizer: PreTrainedTokenizerFast,
    staging: Path,
    max_length: int,
) -> DecoderRows:
    """Return the tokens of the rows to verify on. Conversations are rendered with the chat template before."""
    encoder = TextEncoder(
        str(staging / "tokenizer.json"),
        max_length=max_length,
        names=("input_ids",),
        padding={},
        split_special_tokens=tokenizer.split_special_tokens,
    )
    prepared = prepare_rows(source.rows, task, encoder, location="the rows to verify on", training=False)
    write_evaluation(prepared, staging)
    chosen = prepared.take(sample_indices(len(prepared), options.verify_rows, options.seed))
    encodings = encoder.encode(list(chosen.texts[0]), special_tokens=task.adds_special_tokens)
    return DecoderRows(rows=[encoding.ids for encoding in encodings], end=task.served.generation_options.eos_token_id)


def _original(source: ExportSource, made: DecoderExport) -> OriginalFigures:
    figures = {
        METRIC: made.perplexity,
        "rows": made.rows,
        "bytes": checkpoints.weights_size(source.folder),
        "checkpoint": OriginalCheckpoint(name=source.name, sha256=checkpoints.weights_sha256(source.folder)),
    }
    return OriginalFigures.model_validate(figures | _speed(made.speed))


def _speed(speed: DecodingSpeed) -> dict[str, object]:
    throughput = Throughput(one_by_one=speed.alone, batched=speed.together)
    return {"latency_ms": 1000 / speed.alone, "throughput": throughput, "speed_device": "cpu"}


def _record(variant: DecoderVariant, made: DecoderExport) -> VariantRecord:
    figures, greedy = variant.figures, variant.figures.greedy
    values = {
        METRIC: figures.perplexity,
        "metric_drop": None if figures.perplexity_increase is None else 100 * figures.perplexity_increase,
        "next_token_agreement": figures.token_agreement,
        "equal_answers": (greedy.equal + greedy.ties) / greedy.answers,
        "max_logit_difference": figures.max_logit_difference,
        "cache_bytes": made.layout.cache_bytes_per_token,
        "bytes": variant.bytes,
        "operators": variant.operators,
    }
    return VariantRecord(
        file=variant.file,
        verdict="passed" if variant.passed else "failed",
        gates=variant.gates,
        figures=GenerationVariantFigures.model_validate(values | _speed(variant.speed)),
    )


def _reference(made: DecoderExport) -> ReferenceCheck:
    """Describe the comparison of the greedy answers of fp32 with those of ``transformers.generate``."""
    figures = made.variants["fp32"].figures
    difference = figures.max_logit_difference
    return ReferenceCheck(
        library="transformers.generate", texts=figures.greedy.answers, max_difference=math.inf if difference is None else difference
    )
