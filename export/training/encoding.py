"""Tokenized rows and targets on the disk. They are made once; resumed runs, trials of a search and other processes reuse them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.data import LabelledRows, tokenize_rows
from export.model_inputs import given_inputs
from export.tasks.base import IGNORED
from export.tasks.trained import OwnLossTask
from export.training.batches import TEACHER_LOGITS, training_columns
from export.training.distributed import world_size
from export.training.losses import missing_label
from export.training.ngram_augmentation import random_spans
from serving.errors import ArtifactError
from serving.runtime.tokenization import FIELDS, TextEncoder
from serving.runtime.types import Features, Origins

if TYPE_CHECKING:
    from export.training.distillation import Teacher
    from export.training.job import TrainingJob

ROWS, ORIGINS = "rows", "origins"
CHUNK_TEXTS = 20_000
"""Number of texts tokenized at a time: as Python integers tokens take thirty times their memory on the disk."""


@dataclass(frozen=True, kw_only=True)
class EncodedSplit:
    """One split as the model takes it, with the references for the metric.

    Attributes:
        dataset: A ``datasets.Dataset`` with a column for each input and each target.
        origins: The labelled row that each model row comes from; empty for training rows.
        references: References for the task's metric, one per labelled row.
    """

    dataset: Any
    origins: Origins
    references: Sequence[Any]

    @property
    def targets(self) -> list[str]:
        """Names of the target columns."""
        names: list[str] = self.dataset.column_names
        return [name for name in names if name not in (*FIELDS, "length", TEACHER_LOGITS)]

    @property
    def labels(self) -> Sequence[Any]:
        """Return the column ``labels``; empty if the task has other targets."""
        return self.dataset["labels"][:] if "labels" in self.targets else ()


def encode_split(rows: LabelledRows, job: TrainingJob, split: str) -> EncodedSplit:
    """Tokenize a split exactly as the served ensemble does, add the targets, and for training rows the teacher's logits.

    Args:
        rows: The labelled rows.
        job: The training job, whose ``tokens`` folder caches the result.
        split: Name of the split.

    Returns:
        The split, read from the disk.

    Raises:
        ArtifactError: The rows cannot be written.
        DataError: The served model would refuse a row.
    """
    from datasets import Dataset

    folder = job.tokens / split
    if not folder.exists():
        _write(rows, job, folder, training=split == "train")
    origins = Dataset.load_from_disk(str(folder / ORIGINS)).to_dict() if split != "train" else {"sample_mapping": ()}
    return EncodedSplit(
        dataset=Dataset.load_from_disk(str(folder / ROWS)),
        origins=Origins(np.array(origins["sample_mapping"], dtype=np.int64), origins.get("metadata", ())),
        references=rows.labels,
    )


def _write(rows: LabelledRows, job: TrainingJob, folder: Path, *, training: bool) -> None:
    from datasets import Dataset, concatenate_datasets

    teacher = job.teacher if training and job.teacher is not None and job.teacher.cacheable else None
    texts_of_a_row = 1 + (teacher.options.parts if teacher else 0)
    # a labelled row's requests belong together
    at_once = len(rows) if isinstance(job.task, OwnLossTask) else max(1, CHUNK_TEXTS // texts_of_a_row)
    datasets, origins = [], []
    for start in range(0, len(rows), at_once):
        part = rows.take(range(start, min(start + at_once, len(rows))))
        if teacher is not None:
            datasets.append(Dataset.from_dict(_with_teacher_logits(part, job, teacher, seed=start)))
            continue
        columns, found = _columns(part, job)
        datasets.append(Dataset.from_dict(columns))
        metadata = {"metadata": list(found.metadata)} if found.metadata else {}
        origins.append(Dataset.from_dict({"sample_mapping": found.sample_mapping + start} | metadata))
    torn = folder.with_name(f"{folder.name}.torn")  # renamed when complete
    shutil.rmtree(torn, ignore_errors=True)
    try:
        concatenate_datasets(datasets).save_to_disk(str(torn / ROWS))
        if not training:
            concatenate_datasets(origins).save_to_disk(str(torn / ORIGINS))
        torn.rename(folder)
    except OSError as error:
        shutil.rmtree(torn, ignore_errors=True)
        raise ArtifactError(f"cannot write the rows' tokens into {folder}: {error}", hint="is the disk full?") from error


def _with_teacher_logits(rows: LabelledRows, job: TrainingJob, teacher: Teacher, *, seed: int) -> dict[str, Any]:
    """Make columns with the teacher's logits for the rows and for random spans of them, which have no label."""
    generator = random.Random(seed + job.options.seed)  # noqa: S311 - nothing secret
    encoder, count = _encoder(job), teacher.options.parts
    spans = [chain.from_iterable(random_spans(column, count, encoder, generator)) for column in rows.texts]
    texts = tuple((*column, *parts) for column, parts in zip(rows.texts, spans, strict=True))
    whole = LabelledRows(texts=texts, labels=(*rows.labels, *[None] * count * len(rows)))
    features, names = _features(whole, job)
    targets = job.task.targets(features, rows.labels)
    targets = {name: [*known, *[missing_label(known[0])] * count * len(rows)] for name, known in targets.items()}
    batch_size = 2 * job.options.per_device_batch_size(world_size())  # as in evaluation
    logits = teacher.logits(whole, batch_size=batch_size, max_length=job.max_length, device=job.device)
    return {**training_columns(features, names, targets, job.task), TEACHER_LOGITS: logits}


def _columns(rows: LabelledRows, job: TrainingJob) -> tuple[Mapping[str, Any], Origins]:
    features, names = _features(rows, job)
    targets = job.task.targets(features, job.task.encode_targets(rows.labels, _encoder(job)))
    if job.task.causal:
        features, targets = _with_targets(features, targets)
    return training_columns(features, names, targets, job.task), features.origins


def _with_targets(features: Features, targets: Mapping[str, list[Any]]) -> tuple[Features, dict[str, list[Any]]]:
    """Leave out rows without a token to predict, such as a part of a conversation that the user wrote: their mean loss is NaN."""
    kept = [any(label != IGNORED for label in labels[1:]) for labels in targets["labels"]]
    encodings = list(compress(features.encodings, kept))
    mapping = features.origins.sample_mapping[np.array(kept, dtype=np.bool_)]
    return Features(encodings, Origins(mapping)), {name: list(compress(values, kept)) for name, values in targets.items()}


def _features(rows: LabelledRows, job: TrainingJob) -> tuple[Features, list[str]]:
    """Tokenize the rows; return them and the names of the model's inputs."""
    return tokenize_rows(rows, job.task, _encoder(job), training=True), given_inputs(job.tokenizer)


def _encoder(job: TrainingJob) -> TextEncoder:
    return TextEncoder(job.tokenizer.backend_tokenizer, max_length=job.max_length, names=(), padding={})
