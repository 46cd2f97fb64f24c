"""Refuses to replace an artifact by one that was made from something else, and says what changes where it is made anew."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar, cast

from pydantic import JsonValue, ValidationError

from export.columns import ResolvedColumns
from serving.artifact import MANIFEST, read_manifest
from serving.errors import ArtifactError
from serving.manifests import BundleManifest, CheckpointManifest, Manifest, Record, StageInputs
from serving.reporting import logger
from serving.writing import writing

REPLACE = "choose another --name, or replace it with --force"
ORIGIN = "origin.json"
"""File beside the epochs of an unfinished training that records what it started from."""
SHOWN = 3
"""Number of changes that a message names."""
ManifestT = TypeVar("ManifestT", bound=Manifest)


class TrainingOrigin(Record):
    """What a checkpoint is fine-tuned from. Another origin makes another model; other training options do not.

    Attributes:
        task: The task.
        checkpoint: Location of the base checkpoint.
        checkpoint_files: SHA-256 of its files by relative path.
        rows: Location of the training rows.
        rows_sha256: SHA-256 of the training rows.
        columns: Their columns: texts, choices and labels.
    """

    task: str
    checkpoint: str
    checkpoint_files: dict[str, str]
    rows: str
    rows_sha256: str
    columns: tuple[str, ...]

    @classmethod
    def of_run(cls, inputs: StageInputs, *, checkpoint: str, rows: str, columns: ResolvedColumns) -> Self:
        """Describe a run.

        Args:
            inputs: What the stage reads.
            checkpoint: Location of the base checkpoint.
            rows: Location of the training rows.
            columns: Their columns.
        """
        labels = columns.labels or ((columns.label,) if columns.label is not None else ())
        return cls._of(inputs, checkpoint, rows, (*columns.texts, *columns.choices, *labels))

    @classmethod
    def of_checkpoint(cls, manifest: CheckpointManifest) -> Self:
        """Read what a checkpoint was fine-tuned from."""
        label = manifest.data.label_column
        labels = (label,) if isinstance(label, str) else label or ()
        found = cls._of(manifest.inputs, manifest.base_checkpoint, manifest.data.train, (*manifest.data.text_columns, *labels))
        return found.model_copy(update={"task": manifest.task})

    @classmethod
    def _of(cls, inputs: StageInputs, checkpoint: str, rows: str, columns: tuple[str, ...]) -> Self:
        splits = cast("Mapping[str, Mapping[str, str]]", inputs.options.get("rows", {}))
        return cls(
            task=str(inputs.options.get("task", "")),
            checkpoint=checkpoint,
            checkpoint_files=inputs.files,
            rows=rows,
            rows_sha256=splits.get("train", {}).get("sha256", ""),
            columns=columns,
        )

    def differences(self, other: TrainingOrigin) -> list[str]:
        """Say in what ``other`` is another origin. A file whose content has changed at the same place is the same one."""
        found = []
        if other.task != self.task:
            found.append(f"the task is {other.task}")
        if other.checkpoint_files != self.checkpoint_files and not _same_place(other.checkpoint, self.checkpoint):
            found.append(f"the checkpoint is {other.checkpoint}")
        if other.rows_sha256 != self.rows_sha256 or not self.rows_sha256:
            if not _same_place(other.rows, self.rows):
                found.append(f"the training rows are {other.rows}")
            elif other.columns != self.columns:
                found.append(f"the columns are {', '.join(other.columns)} in place of {', '.join(self.columns)}")
        return found

    def __str__(self) -> str:
        """Return the origin in words."""
        return f"for {self.task} from {self.checkpoint} on {self.rows}"


def refuse_other_checkpoint(folder: Path, origin: TrainingOrigin, inputs: StageInputs) -> None:
    """Check that a run does not replace a checkpoint of another origin, and announce a replacement.

    Args:
        folder: The artifact that the run will write, which is not up to date. It need not exist.
        origin: What the run trains from.
        inputs: What the run reads.

    Raises:
        ArtifactError: There is a checkpoint of another origin, or something that tritonize did not write.
    """
    found = existing(folder, CheckpointManifest)
    if found is None:
        return
    before = TrainingOrigin.of_checkpoint(found)
    if differences := before.differences(origin):
        raise ArtifactError(f"{folder} was fine-tuned {before}; now {', '.join(differences)}", hint=REPLACE)
    logger.info(f"the earlier checkpoint in {folder} will be replaced: {_changes(found.inputs, inputs)}")


def refuse_other_epochs(scratch: Path, origin: TrainingOrigin) -> None:
    """Check that a run does not discard the epochs of an interrupted run of another origin.

    Args:
        scratch: The folder of the epochs. It need not exist.
        origin: What the run trains from.

    Raises:
        ArtifactError: There are such epochs.
    """
    try:
        before = TrainingOrigin.model_validate_json((scratch / ORIGIN).read_bytes(), strict=True)
    except (OSError, ValidationError):  # no run, or one of an earlier version
        return
    if has_epochs(scratch) and (differences := before.differences(origin)):
        raise ArtifactError(
            f"{scratch} holds the epochs of an interrupted fine-tuning {before}; now {', '.join(differences)}",
            hint="choose another --name, or discard them with --force",
        )


def write_origin(scratch: Path, origin: TrainingOrigin) -> None:
    """Record beside the epochs of a run what it trains from."""
    with writing(scratch / ORIGIN):
        (scratch / ORIGIN).write_text(origin.model_dump_json(indent=2), encoding="utf-8")


def has_epochs(scratch: Path) -> bool:
    """Return whether an interrupted run has left epochs, or trials of a search."""
    return any(scratch.glob("checkpoint-*")) or (scratch / "search").exists()


def refuse_other_bundle(folder: Path, *, task: str, checkpoint: str, files: Mapping[str, str], retrainable: bool) -> None:
    """Check that an export does not replace a bundle of another checkpoint or task, and announce one of a changed checkpoint.

    Args:
        folder: The artifact that the export will write, which is not up to date. It need not exist.
        task: The task.
        checkpoint: The checkpoint, as the bundle will name it.
        files: SHA-256 of its files by relative path.
        retrainable: Whether ``finetune`` wrote it under the name of the bundle. If it was trained anew, also for another task,
            its bundle follows.

    Raises:
        ArtifactError: There is a bundle of another checkpoint or task, or something that tritonize did not write.
    """
    found = existing(folder, BundleManifest)
    if found is None:
        return
    before = found.original.checkpoint.name
    changed = any(found.inputs.files.get(name) != digest for name, digest in files.items())
    differences = [f"the task is {task}"] if task != found.task else []
    if changed and checkpoint != before:
        differences.append(f"the checkpoint is {checkpoint}")
    if differences and not (changed and checkpoint == before and retrainable):
        raise ArtifactError(f"{folder} was exported for {found.task} from {before}; now {', '.join(differences)}", hint=REPLACE)
    if changed:
        logger.info(f"the bundle in {folder} will be replaced: the checkpoint {checkpoint} has changed since")


def existing(folder: Path, kind: type[ManifestT]) -> ManifestT | None:
    """Read the manifest of the artifact that a stage is about to replace.

    Returns:
        None if there is nothing, or a damaged artifact, which may be replaced.

    Raises:
        ArtifactError: The folder holds something that tritonize did not write.
    """
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{folder} exists and was not written by tritonize", hint=f"move it away, {REPLACE}")
    try:
        return read_manifest(folder, kind)
    except ArtifactError:
        return None


def _same_place(one: str, other: str) -> bool:
    return os.path.abspath(one) == os.path.abspath(other)  # noqa: PTH100 - a name on the Hub is no path


def _changes(before: StageInputs, now: StageInputs) -> str:
    """Say what a stage reads now that it did not read before."""
    old, new = dict(_flat(before.options)), dict(_flat(now.options))
    found: list[str] = ["the base checkpoint has changed"] if before.files != now.files else []
    for split in ("train", "validation", "test"):
        if old.get(f"rows.{split}.sha256") != new.get(f"rows.{split}.sha256"):
            found.append(f"the {'training' if split == 'train' else split} rows have changed")
    for key in dict.fromkeys([*new, *old]):
        if not key.startswith(("rows.", "teacher.")) and old.get(key) != new.get(key):
            found.append(f"{_option(key)} {_shown(new.get(key))} in place of {_shown(old.get(key))}")
    shown = found[:SHOWN] or ["its files or the installed libraries have changed"]
    more = len(found) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _option(key: str) -> str:
    return key.rpartition(".")[2].replace("_", "-")


def _shown(value: JsonValue) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _flat(options: Mapping[str, JsonValue], above: Sequence[str] = ()) -> Iterator[tuple[str, JsonValue]]:
    """Yield the options of nested records by their dotted path."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, (*above, name))
        else:
            yield ".".join((*above, name)), value
