"""The history of a package: the generations that were chosen one after the other. ``rollback`` goes back along it.

It is a file in the folder of the package with a generation in each line, the oldest first, so that a copied repository has it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serving.layout import HISTORY, generations


def read_history(repository: Path, name: str) -> list[str]:
    """Return the generations that were chosen so far, as far as the repository still holds them. Without a file there are none."""
    try:
        text = (repository / name / HISTORY).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    held = generations(repository, name)
    return [generation for generation in dict.fromkeys(text.split()) if generation in held]


def continued(history: Sequence[str], before: str | None, chosen: str) -> list[str]:
    """Return the history after a generation was chosen.

    Choosing an earlier one is a way back: what follows it is left out.
    Otherwise what was chosen after ``before`` is left out: it has never answered.

    Args:
        history: The history until now.
        before: The generation that answered until now; None if there was none.
        chosen: The generation that answers from now on.
    """
    known = list(history)
    if before is None:
        return [*(known[: known.index(chosen)] if chosen in known else known), chosen]
    if before not in known:
        known = [*(generation for generation in known if generation != chosen), before]
    until_before = known[: known.index(before) + 1]
    if chosen in until_before:
        return until_before[: until_before.index(chosen) + 1]
    return [*until_before, chosen]
