"""Removes the old generations of a package from a model repository."""

from __future__ import annotations

from pathlib import Path

from serving.artifact import staging_folder
from serving.layout import WARMUP, current_generation, generation_entries, generation_folder, generations
from serving.leases import without_leases
from serving.model_names import read_model_name
from serving.placement import staging_root


def prune(repository: Path, name: str, keep: int) -> list[str]:
    """Remove old generations that no server holds, and what interrupted packagings have left. The current one stays.

    Args:
        repository: The model repository.
        name: Name of the package.
        keep: How many generations stay: the current one and the newest others.

    Returns:
        The generations that were removed.
    """
    current = current_generation(repository, name)
    others = [generation for generation in reversed(generations(repository, name)) if generation != current]
    known = {*others, current}
    left = {of.generation for entry in generation_entries(repository, name) if (of := read_model_name(entry.name))}
    left |= {entry.name for entry in (repository / name / WARMUP).glob("*")}
    unused = [*others[max(0, keep - 1) :], *sorted(left - known)]
    removed = []
    for generation in unused:
        with staging_folder(staging_root(repository), f"{repository.name}-{name}") as staging:
            if _remove(repository, name, generation, staging):
                removed.append(generation)
    return removed


def _remove(repository: Path, name: str, generation: str, staging: Path) -> bool:
    """Move a generation into a folder that is deleted afterwards, unless a running server holds it.

    Returns:
        Whether it was moved.
    """
    folder = generation_folder(repository, name, generation)
    if not folder.is_dir():
        _take_away(repository, name, generation, staging)
        return True
    with without_leases(folder) as free:
        if free:
            folder.rename(staging / generation)
            _take_away(repository, name, generation, staging)
    return free


def _take_away(repository: Path, name: str, generation: str, staging: Path) -> None:
    warmup = repository / name / WARMUP / generation
    if warmup.is_dir():
        warmup.rename(staging / WARMUP)
    for entry in generation_entries(repository, name, generation):
        entry.rename(staging / entry.name)
