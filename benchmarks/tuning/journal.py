"""Trials that a tuning has made so far, on disk as soon as they are made: a search that was interrupted goes on from them.

Taken over is what the search could measure. A trial that failed is made again, as its cause may be repaired; so is all of a final,
as only rounds of one run stand side by side.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.tuning.trial import Trial
from serving.configuration import Configuration
from serving.errors import ArtifactError, ServerError


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What trials depend on, JSON-ready.

    Args:
        conditions: everything that decides what a trial finds. Trials made under others say nothing.
        goal: everything else that decides what a tuning comes to. Trials hold for any.
    """

    conditions: Mapping[str, Any]
    goal: Mapping[str, Any]

    def valid(self, recorded: Mapping[str, Any], trials: Sequence[Trial]) -> list[Trial]:
        """Those of ``trials`` that were made under the same conditions, where ``recorded`` has the terms they were made under."""
        return list(trials) if recorded.get("conditions") == self.conditions else []

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"conditions": dict(self.conditions), "goal": dict(self.goal)}


class Journal:
    """Where trials are written down, and those made earlier. Open it with :func:`opened`.

    Args:
        file: open for writing at its end.
        earlier: trials made under the same conditions.
    """

    def __init__(self, file: IO[str], earlier: Sequence[Trial]) -> None:
        self._file = file
        self._taken = {trial.configuration: trial for trial in _taken(earlier)}
        self._failed = sum(trial.round == 0 and trial.failure is not None for trial in earlier)
        self._final = sum(trial.round > 0 for trial in earlier)

    def taken(self, configuration: Configuration) -> Trial | None:
        """The trial of the search that need not be made again."""
        return self._taken.get(configuration)

    def told(self) -> Iterator[str]:
        """What becomes of the trials made earlier, a line for each kind there is."""
        counts = {
            "trials made before and taken over": len(self._taken),
            "trials that failed before, made again": self._failed,
            "trials of an earlier final, which is measured anew as a whole": self._final,
        }
        yield from (f"{kind}: {count}" for kind, count in counts.items() if count)

    def add(self, trial: Trial) -> None:
        """Write a trial down."""
        self._file.write(_line(trial.to_json()))
        self._file.flush()


@contextlib.contextmanager
def opened(path: Path, terms: Terms, earlier: Sequence[Trial], *, fresh: bool) -> Iterator[Journal]:
    """The journal at ``path``, for one process at a time.

    Args:
        earlier: valid trials to begin with, where there is no journal to go on with.
        fresh: drop whatever is there.

    Raises:
        ServerError: another process has it open.
        ArtifactError: what is there cannot be read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerError("this bundle is being tuned already", hint="wait for that, or end it with Ctrl-C") from None
        trials = [] if fresh else _read(file, path, terms) or list(earlier)
        fresh_path = path.with_suffix(".new")
        lines = [terms.to_json(), *(trial.to_json() for trial in _taken(trials))]
        fresh_path.write_text("".join(map(_line, lines)), encoding="utf-8")
        with fresh_path.open("a", encoding="utf-8") as rewritten:
            fcntl.flock(rewritten, fcntl.LOCK_EX)  # before it takes the place of the one that others find locked
            fresh_path.rename(path)
            yield Journal(rewritten, trials)


def _taken(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.round == 0 and trial.failure is None]


def _read(file: IO[str], path: Path, terms: Terms) -> list[Trial]:
    """Trials made under the same conditions. A last line without an end was never finished."""
    file.seek(0)
    try:
        lines = [json.loads(line) for line in file if line.endswith("\n")]
        return terms.valid(lines[0], [Trial.from_json(line) for line in lines[1:]]) if lines else []
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", hint="begin anew with: tritonize tune --fresh") from error


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"
