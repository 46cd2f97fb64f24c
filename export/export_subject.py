"""What an export is about, where the user says less: the name and the task of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from export import checkpoint as checkpoints
from export.export_options import ExportOptions
from export.sources import checkpoint_folder
from export.tasks import is_exported, task_class, task_names
from serving.artifact import MANIFEST, read_manifest
from serving.errors import ExportError
from serving.manifests import CheckpointManifest
from serving.naming import as_model_name, only_artifact, tell_name
from serving.reporting import logger


def described_export(options: ExportOptions, from_recipe: str | None = None) -> ExportOptions:
    """Fill in the name and the task if the user gave none.

    Both are those of the fine-tuning if ``finetune`` wrote the checkpoint. Otherwise the name is that of the recipe file or of the
    checkpoint, and the task is that of its architecture.

    Args:
        options: Options of the stage.
        from_recipe: The name after the recipe file.

    Raises:
        ArtifactError: There is no such checkpoint, or it cannot be read.
        ExportError: The architecture is of no task that is exported, or of several.
        click.UsageError: No checkpoint is given, and there is not exactly one.
    """
    if options.task and (options.name or not is_exported(task_class(options.task))):
        return options  # of a task that is not exported, find_source says so
    if options.checkpoint is None:
        name = options.name or from_recipe
        if name is None:
            only = only_artifact(options.artifacts, CheckpointManifest.artifact_kind, "tritonize finetune")
            name = tell_name(only, f"the only checkpoint in {options.artifacts}")
        manifest = read_manifest(options.artifacts / name / "checkpoint", CheckpointManifest)
        return replace(options, name=name, task=options.task or manifest.task)
    folder = checkpoint_folder(options.checkpoint, options.artifacts / "quickstart")
    trained = read_manifest(folder, CheckpointManifest) if (folder / MANIFEST).is_file() else None
    name = options.name or (trained.name if trained is not None else from_recipe or as_model_name(Path(options.checkpoint).name))
    if not options.name:
        tell_name(name, "its checkpoint" if trained is not None or from_recipe is None else "the recipe")
    task = options.task or (trained.task if trained is not None else _task_of(folder, options.checkpoint))
    return replace(options, name=name, task=task)


def _task_of(folder: Path, location: str) -> str:
    """Return the task of a checkpoint's architecture, and tell the user.

    Raises:
        ArtifactError: The config cannot be read.
        ExportError: It is of no task that is exported, or of several.
    """
    config = checkpoints.read_config(folder)
    found = ", ".join(checkpoints.architectures(config)) or "no architecture"
    fitting = _fitting(config, folder)
    if len(fitting) == 1:
        logger.info(f"the task is {fitting[0]}: {location} is a {found} (--task changes this)")
        return fitting[0]
    if fitting:
        raise ExportError(f"{location} ({found}) fits several tasks", hint=f"give --task {' or --task '.join(fitting)}")
    exported = [name for name in task_names() if is_exported(task_class(name))]
    raise ExportError(f"{location} ({found}) is of no task that is exported", hint=f"give --task; it can be {', '.join(exported)}")


def _fitting(config: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the names of the exported tasks whose head the checkpoint has, or whose files."""
    tasks = [task for name in task_names() if is_exported(task := task_class(name))]
    found = [
        task.name
        for task in tasks
        if (checkpoints.has_head(config, task) and task.suits(config))
        or (task.recognized_by and (folder / task.recognized_by).is_file())
    ]
    if found or not any(name.endswith("Model") for name in checkpoints.architectures(config)):
        return found
    return [task.name for task in tasks if not checkpoints.needs_head(task)]
