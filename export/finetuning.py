"""The fine-tuning stage: trains a checkpoint on labelled rows and writes the best epoch as an artifact."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from export import checkpoint as checkpoints
from export.baseline import measure_baseline
from export.data import prepare_rows, write_evaluation
from export.finetune_options import FinetuneOptions
from export.lengths import UNTRUNCATED_SHARE, count_target_tokens, count_tokens, fitted_length
from export.model_card import model_card
from export.options import refuse_idle_settings, refuse_serving_settings, with_chosen_metric
from export.replacing import TrainingOrigin, has_epochs, refuse_other_checkpoint, refuse_other_epochs, write_origin
from export.sources import checkpoint_files, checkpoint_folder
from export.splits import HELD_OUT, Splits, load_splits
from export.tasks import task_names, trained_class
from export.tasks.trained import TrainedTask
from export.training.distributed import main_first, world_size
from export.training_name import named_for_training
from export.unknown_tokens import count_unknown_tokens, warn_of_unknown_tokens
from serving.artifact import (
    code_fingerprint,
    fingerprint,
    inputs_record,
    is_current,
    json_ready,
    provenance,
    publish,
    read_manifest,
    task_code,
    versions,
    write_manifest,
)
from serving.errors import ArtifactError
from serving.manifests import (
    AdapterRecord,
    CheckpointManifest,
    DistillationRecord,
    SearchFigures,
    StageInputs,
    TrainingData,
    TrainingFigures,
)
from serving.reporting import is_main_process, logger, plural
from serving.writing import writing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from export.training.job import TrainingJob, TrainingResult
    from export.training.search import SearchResult

SHAPING = (
    "export/checkpoint.py",
    "export/columns.py",
    "export/data.py",
    "export/finetuning.py",
    "export/leaks.py",
    "export/lengths.py",
    "export/metric.py",
    "export/metrics",
    "export/model_inputs.py",
    "export/slow_tokenizers",
    "export/splits.py",
    "export/training",
    "serving/runtime/cutting.py",
    "serving/runtime/tokenization.py",
    "serving/runtime/types.py",
)
"""Files that the result of an epoch depends on, besides the task.

The epochs of an interrupted run are discarded if one of them has changed. A finished checkpoint stays up to date, because training
is expensive.
"""
TASK_SHAPING = ("export/tasks", "serving/runtime/tasks")
"""Folders with one module per task, of which only the trained task counts (see :func:`serving.artifact.task_code`)."""
ADAPTER = "adapter"
"""Folder in the artifact for the adapter alone; its weights are also merged into those of the artifact."""


def finetune(options: FinetuneOptions) -> CheckpointManifest:
    """Train a checkpoint and write the best epoch. A run that was interrupted resumes after its last complete epoch.

    Returns:
        The manifest of the checkpoint, which is that of the last run if nothing has changed since.

    Raises:
        ArtifactError: The checkpoint cannot be used, or the run would replace a checkpoint that was made from something else.
        DataError: The rows, columns or labels do not fit the task.
        SetupError: The quickstart could not be fetched, or the device is missing.
    """
    options = named_for_training(options)
    cache = options.artifacts / "quickstart"
    task = trained_class(options.task)
    with main_first(options.device):
        data = load_splits(
            {"train": options.train, "validation": options.validation, "test": options.test},
            options.split_columns,
            task,
            cache=cache,
            max_train_rows=options.max_train_rows,
            seed=options.training.seed,
            keep_leaks=options.keep_leaks,
        )
        base = checkpoint_folder(options.checkpoint, cache)
        teacher = checkpoint_folder(options.distillation.teacher, cache) if options.distillation is not None else None
    data = replace(data, task=with_chosen_metric(_with_settings(data.task, options, base), options.metric))
    inputs = _inputs(options, base, teacher, data)
    if not options.force and is_current(options.target, CheckpointManifest, inputs):
        logger.info(f"{options.target} is up to date")
        return read_manifest(options.target, CheckpointManifest)
    origin = TrainingOrigin.of_run(
        inputs, checkpoint=options.checkpoint, rows=options.train, columns=options.columns.resolved(task)
    )
    if not options.force:
        refuse_other_checkpoint(options.target, origin, inputs)
        refuse_other_epochs(_scratch(options), origin)
    sizes = ", ".join(f"{len(rows)} {name}" for name, rows in data.rows.items())
    logger.info(f"fine-tuning {options.checkpoint} on {sizes} rows{_label_list(data.task)}")
    return _train_and_write(options, base, teacher, data, inputs, origin)


def shaping_code(task: str) -> dict[str, str]:
    """Return the SHA-256 of each file that the result of an epoch of a task depends on, by path."""
    return code_fingerprint([*SHAPING, *task_code(TASK_SHAPING, task, task_names())])


def _with_settings(task: TrainedTask, options: FinetuneOptions, base: Path) -> TrainedTask:
    """Return the task with the settings of the checkpoint and those that the user chose.

    Raises:
        ArtifactError: The checkpoint cannot be used for the task.
        click.BadParameter: A setting or a temperature that the user chose has no effect.
    """
    try:
        bound = task.with_settings(checkpoints.read_settings(base, type(task), options.setting))
    except ValueError as error:
        raise ArtifactError(f"{options.checkpoint} cannot be used for {task.name}: {error}", hint="see --setting") from None
    refuse_idle_settings(bound, options.setting)
    refuse_serving_settings(task, options.setting)
    if options.distillation is not None:
        options.distillation.check_temperature(bound.head().get("problem_type"))
    return bound


def _label_list(task: TrainedTask) -> str:
    labels = task.labels
    return f", labels {', '.join(labels)}" if labels else ""


def _inputs(options: FinetuneOptions, base: Path, teacher: Path | None, data: Splits) -> StageInputs:
    record = {
        "task": options.task,
        "settings": data.task.to_settings(),
        "max_length": options.max_length,
        "keep_leaks": options.keep_leaks,
        "device": options.device,
        "training": asdict(options.training),
        "adapter": None if options.adapter is None else asdict(options.adapter),
        "distillation": None if options.distillation is None else asdict(options.distillation),
        "search": [options.search, *options.fixed] if options.search else None,
        "teacher": None if teacher is None else fingerprint(checkpoint_files(teacher), root=teacher),
        "rows": data.inputs,
    }
    return inputs_record(record, fingerprint(checkpoint_files(base), root=base))


def _train_and_write(
    options: FinetuneOptions, base: Path, teacher: Path | None, data: Splits, inputs: StageInputs, origin: TrainingOrigin
) -> CheckpointManifest:
    from export.training import distillation, tracking
    from export.training.job import TrainingJob

    tracking.check_trackers(options.report_to)
    tokenizer = checkpoints.load_tokenizer(base, pads_with_end=data.task.causal)
    max_length = _max_length(options, base, tokenizer, data)
    data = _with_tokenizer(data, tokenizer, max_length, options)
    _warn_truncated_targets(data, tokenizer, options.training.seed)
    data = replace(data, unknown_tokens=count_unknown_tokens(data.rows["train"], data.task, tokenizer, seed=options.training.seed))
    warn_of_unknown_tokens(data.unknown_tokens)
    scratch = _scratch(options)
    with main_first(options.device):
        if is_main_process():
            recorded = inputs.model_dump(mode="json")
            made_from = {"inputs": recorded, "code": shaping_code(options.task), "versions": versions(), "processes": world_size()}
            _prepare_scratch(scratch, made_from | {"folder": str(scratch)})
            write_origin(scratch, origin)
    started = time.monotonic()
    job = TrainingJob(
        base=base,
        checkpoint_name=options.checkpoint,
        task=data.task,
        chosen_settings=options.setting.keys(),
        tokenizer=tokenizer,
        splits=data.rows,
        max_length=max_length,
        options=options.training,
        adapter=options.adapter,
        teacher=None
        if teacher is None or options.distillation is None
        else distillation.load_teacher(teacher, data.task, tokenizer, options.distillation),
        device=options.device,
        scratch=scratch,
        tokens=scratch / "tokens",
        report_to=options.report_to if is_main_process() else (),
    )
    trained = _search_and_train(options, job, started)
    with main_first(options.device):
        if is_main_process():
            return _write(options, job, trained, data, inputs)
    return read_manifest(options.target, CheckpointManifest)


def _search_and_train(options: FinetuneOptions, job: TrainingJob, started: float) -> TrainingResult:
    """Search hyperparameters if that was asked for, train with the best, and add the figures of the whole run.

    Args:
        options: Options of the stage.
        job: The training job.
        started: Start of the run by ``time.monotonic``, s.
    """
    from export.training.train import train

    found = _search_hyperparameters(options, job)
    trained = train(job if found is None else replace(job, options=found.options))
    figures = trained.figures | {
        "rows": {split: len(rows) for split, rows in job.splits.items()},
        "seconds": round(time.monotonic() - started, 1),
    }
    if (baseline := measure_baseline(job.task, job.splits)) is not None:
        figures["baseline"] = baseline
    if found is not None:
        figures["search"] = SearchFigures(**{job.task.main_metric: found.value}, trials=found.trials)
    return replace(trained, figures=figures)


def _max_length(options: FinetuneOptions, base: Path, tokenizer: PreTrainedTokenizerFast, data: Splits) -> int:
    """Return the maximum number of tokens per row, and warn if many rows are truncated."""
    default = data.task.default_max_length
    counts = count_tokens(data.rows["train"], data.task, tokenizer, seed=options.training.seed) if data.task.fits_length else []
    fitted = fitted_length(counts, minimum=default) if counts else default
    config, fine_tuned = checkpoints.read_config(base), checkpoints.is_fine_tuned(base)
    max_length = checkpoints.resolve_max_length(options.max_length, tokenizer, config, default=fitted, fine_tuned=fine_tuned)
    _warn_truncated_rows(counts, max_length, options, fitted=fitted)
    return max_length


def _warn_truncated_rows(counts: list[int], max_length: int, options: FinetuneOptions, *, fitted: int) -> None:
    truncated = sum(count > max_length for count in counts)
    if truncated and (options.max_length or truncated > len(counts) * (1 - UNTRUNCATED_SHARE)):
        reason = ", the model's limit" if max_length < fitted else " (--max-length changes this)"
        where = f"{max_length} tokens{'' if options.max_length else reason}"
        are = plural(truncated, "is", "are")
        logger.warning(f"{truncated} of {len(counts)} training rows {are} truncated at {where}; the longest has {counts[-1]}")


def _warn_truncated_targets(data: Splits, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    if not data.task.generates:
        return
    limit = cast(int, data.task.generation_settings()["max_length"]) - 1
    counts = count_target_tokens(data.rows["train"], tokenizer, seed=seed)
    truncated = sum(count > limit for count in counts)
    if truncated:
        where = f"{limit} tokens (--setting max_new_tokens=… changes this)"
        are = plural(truncated, "is", "are")
        logger.warning(f"{truncated} of {len(counts)} targets {are} truncated at {where}; the longest has {counts[-1]}")


def _search_hyperparameters(options: FinetuneOptions, job: TrainingJob) -> SearchResult | None:
    if not options.search:
        return None
    from export.training.search import search

    return search(job, options.search, fixed=options.fixed, journal=job.scratch / "search")


def _write(
    options: FinetuneOptions, job: TrainingJob, trained: TrainingResult, data: Splits, inputs: StageInputs
) -> CheckpointManifest:
    from safetensors import SafetensorError

    manifest = _manifest(options, trained, data, inputs, max_length=job.max_length)
    with publish(options.target) as staging:
        try:
            trained.model.save_pretrained(staging, safe_serialization=True)
        except SafetensorError as error:  # also if the disk is full
            raise ArtifactError(f"cannot write the weights into {options.target}: {error}", hint="is the disk full?") from error
        if trained.adapter is not None:
            shutil.copytree(trained.adapter, staging / ADAPTER)
        checkpoints.save_tokenizer(job.tokenizer, staging, job.max_length, longer_texts=job.task.causal)
        checkpoints.write_files(job.task.files_written(job.max_length), staging)
        write_evaluation(job.splits[manifest.evaluation_split], staging)
        (staging / "README.md").write_text(model_card(manifest), encoding="utf-8")
        for path in staging.rglob("*.safetensors"):  # the library makes them readable for the owner only
            shutil.copymode(staging / "README.md", path)
        manifest = write_manifest(staging, manifest)
    shutil.rmtree(job.scratch)
    return manifest


def _with_tokenizer(data: Splits, tokenizer: PreTrainedTokenizerFast, max_length: int, options: FinetuneOptions) -> Splits:
    """Bind the task to the checkpoint's tokenizer, and prepare the rows with both."""
    from serving.runtime.tokenization import TextEncoder

    task = checkpoints.bind_tokenizer(data.task, tokenizer, options.checkpoint)
    encoder = TextEncoder(tokenizer.backend_tokenizer, max_length=max_length, names=(), padding={})
    rows = {
        split: prepare_rows(rows, task, encoder, location=f"the {split} rows", training=split == "train")
        for split, rows in data.rows.items()
    }
    return replace(data, task=task, rows=rows)


def _manifest(
    options: FinetuneOptions, trained: TrainingResult, data: Splits, inputs: StageInputs, *, max_length: int
) -> CheckpointManifest:
    """Describe the checkpoint, without the checksums of its files."""
    task = data.task.with_settings(trained.settings)
    return CheckpointManifest(
        **provenance(inputs),
        name=options.name,
        task=options.task,
        labels=task.labels,
        settings=json_ready(task.to_settings()),
        chosen_settings=json_ready(trained.settings | dict(options.setting)),
        fitted_settings=trained.settings,
        pair=task.pair,
        main_metric=task.main_metric,
        evaluation_split="test" if options.test else "validation",
        base_checkpoint=options.checkpoint,
        data=_training_data(options, data),
        training=json_ready(asdict(trained.options)),
        adapter=None if options.adapter is None else AdapterRecord.model_validate(asdict(options.adapter)),
        distillation=None if options.distillation is None else DistillationRecord.model_validate(asdict(options.distillation)),
        figures=TrainingFigures.model_validate(trained.figures),
        max_length=max_length,
    )


def _training_data(options: FinetuneOptions, data: Splits) -> TrainingData:
    """Describe the rows."""
    columns = options.columns.resolved(type(data.task))
    return TrainingData(
        train=options.train,
        validation=options.validation or f"{HELD_OUT:.0%} of the training rows, held out",
        test=options.test,
        text_columns=(*columns.texts, *columns.choices),
        label_column=tuple(columns.labels) or columns.label,
        label_shares=data.label_shares(),
        shared_rows=dict(data.leaks.shared),
        leaks_kept=options.keep_leaks,
        contradicting_texts=data.leaks.conflicting_texts,
        unknown_tokens=data.unknown_tokens,
    )


def _scratch(options: FinetuneOptions) -> Path:
    """Return the folder of the epochs."""
    return options.target.parent.absolute() / ".training"


def _prepare_scratch(scratch: Path, made_from: Mapping[str, object]) -> None:
    """Keep the epochs of an interrupted run only if they were made from the same inputs.

    Args:
        scratch: The folder of the epochs.
        made_from: The inputs, and the path of the folder, because the trainer records absolute paths.
    """
    record = scratch / "inputs.json"
    wanted = json.dumps(made_from, indent=2, sort_keys=True)
    if record.is_file() and record.read_text(encoding="utf-8") == wanted:
        return
    if has_epochs(scratch):
        logger.info(f"the epochs in {scratch} are discarded: they were trained with other options, rows or code")
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True)
    with writing(record):
        record.write_text(wanted, encoding="utf-8")
