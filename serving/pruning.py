"""Removes the old generations of a package from a model repository."""

from __future__ import annotations

from pathlib import Path

from serving.artifact import staging_folder
from serving.layout import WARMUP, current_generation, generation_entries, generation_folder, generations
from serving.leases import without_leases
from serving.model_names import read_model_name
from serving.placement import staging_root
from serving.promotion_history import read_history


def prune(repository: Path, name: str, keep: int, *, packaged: str | None = None) -> list[str]:
    """Remove old generations that no server holds, and what interrupted packagings have left. The current one stays.

    Those that were never promoted go first: what ``rollback`` goes back to stays.

    Args:
        repository: The model repository.
        name: Name of the package.
        keep: How many generations stay: the current one, those before it in the history of the package, and the newest others.
        packaged: The generation that was packaged just now, which stays too.

    Returns:
        The generations that were removed.
    """
    current = current_generation(repository, name)
    known = generations(repository, name)
    earlier = _answered_before(repository, name, current)
    never = [generation for generation in reversed(known) if generation not in {current, *earlier}]
    unused = [generation for generation in [*earlier, *never][max(0, keep - 1) :] if generation != packaged]
    left = {of.generation for entry in generation_entries(repository, name) if (of := read_model_name(entry.name))}
    left |= {entry.name for entry in (repository / name / WARMUP).glob("*")}
    unused += sorted(left - {*known, current})
    return [generation for generation in unused if remove_generation(repository, name, generation)]


def _answered_before(repository: Path, name: str, current: str | None) -> list[str]:
    """Return the generations that the history of a package has before the current one, the latest first."""
    history = read_history(repository, name)
    before = history[: history.index(current)] if current in history else history
    return before[::-1]


def remove_generation(repository: Path, name: str, generation: str) -> bool:
    """Remove a generation, or what is left of it, unless a running server holds it.

    Returns:
        Whether it was removed.
    """
    folder = generation_folder(repository, name, generation)
    with staging_folder(staging_root(repository), f"{repository.name}-{name}") as staging:
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
