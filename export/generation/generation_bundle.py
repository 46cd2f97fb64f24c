"""Makes the bundle of a checkpoint that generates: its variants, their figures and the files that serving needs. Imports torch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from export import checkpoint as checkpoints
from export.data import prepare_rows, sample_indices, write_evaluation
from export.export_options import ExportOptions
from export.export_source import ExportSource
from export.generation import decoder_records, encoder_decoder_records
from export.generation.made_variants import MadeVariants, VariantInputs, speed_figures
from export.generation_settings import refused_default_hint
from export.tasks._rewriting import RewritingTask
from serving.artifact import json_ready, provenance
from serving.bundle import served_code
from serving.errors import ArtifactError, first_line
from serving.generation_device import reason_for_cpu
from serving.machine import resolve_device
from serving.manifests import (
    BundleManifest,
    OriginalCheckpoint,
    OriginalFigures,
    StageInputs,
)
from serving.reporting import logger
from serving.runtime.tokenization import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


LONGEST = 2048
"""Default limit of a prompt and its answer together, in tokens: a cache of more takes much memory, see ``package --capacity``."""
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
    """
    if resolve_device(options.device) == "gpu":
        logger.info(f"device {reason_for_cpu(name=options.name, task=options.task)}")
    tokenizer = checkpoints.load_tokenizer(source.folder, pads_with_end=True)
    task = checkpoints.bind_tokenizer(source.generation_task, tokenizer, source.name)
    model = checkpoints.load_model(source.folder, type(task), tokenizer)
    try:
        task = task.bound_to(model, tokenizer, source.config).with_defaults(options.setting)
    except ValueError as error:
        raise ArtifactError(
            f"{source.name} cannot be served as it generates: {first_line(error)}",
            hint=refused_default_hint(str(error), options.setting),
        ) from error
    max_length = _max_length(source, options)
    _copy_files(source, tokenizer, max_length, staging)
    encoder = TextEncoder(
        str(staging / "tokenizer.json"),
        max_length=max_length,
        names=("input_ids",),
        padding={},
        split_special_tokens=tokenizer.split_special_tokens,
    )
    rows = prepare_rows(source.rows, task, encoder, location="the rows to verify on", training=False)
    write_evaluation(rows, staging)
    chosen = rows.take(sample_indices(len(rows), options.verify_rows, options.seed))
    logger.info(f"converting {source.name} to ONNX")
    make = encoder_decoder_records if isinstance(task, RewritingTask) else decoder_records
    made = make.make_variants(VariantInputs(model, task, tokenizer, encoder, chosen, options, staging))
    for precision, record in made.records.items():
        if record.verdict == "failed":
            shutil.rmtree(staging / precision)
    return BundleManifest(
        **provenance(inputs),
        name=options.name,
        task=options.task,
        labels=(),
        settings=json_ready(task.served.to_settings()),
        evaluation_settings=json_ready(task.evaluation_settings),
        verified_with=served_code(task.name),
        main_metric=made.metric,
        device="cpu",
        warnings=(),
        original=_original(source, made),
        reference=made.reference,
        precisions=made.records,
        max_length=min(max_length, made.max_positions or max_length),
        max_positions=made.max_positions,
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
    what = "a source" if source.config.get("is_encoder_decoder") else "a prompt and its answer together"
    logger.info(f"{what} may have {found} tokens ({reason})")
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


def _original(source: ExportSource, made: MadeVariants) -> OriginalFigures:
    figures = {
        made.metric: made.original,
        "rows": made.rows,
        "bytes": checkpoints.weights_size(source.folder),
        "checkpoint": OriginalCheckpoint(name=source.name, sha256=checkpoints.weights_sha256(source.folder)),
    }
    return OriginalFigures.model_validate(figures | speed_figures(made.speed))
