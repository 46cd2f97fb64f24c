"""Trials that a tuning has made so far, on disk as soon as they are made: one that was interrupted goes on from them."""

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
        goal: everything that decides which configurations reach the final. Its trials are made by turns, so those of other
            finalists are not to be mixed in; those of the search hold for any goal.
    """

    conditions: Mapping[str, Any]
    goal: Mapping[str, Any]

    def valid(self, recorded: Mapping[str, Any], trials: Sequence[Trial]) -> list[Trial]:
        """Those of ``trials`` that hold here too, where ``recorded`` has the terms they were made under."""
        if recorded.get("conditions") != self.conditions:
            return []
        return [trial for trial in trials if trial.round == 0 or recorded.get("goal") == self.goal]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"conditions": dict(self.conditions), "goal": dict(self.goal)}


class Journal:
    """Trials by configuration and round. Open it with :func:`opened`.

    Args:
        file: open for writing at its end.
        trials: made earlier, and in the file.
    """

    def __init__(self, file: IO[str], trials: Sequence[Trial]) -> None:
        self._file = file
        self._trials = {(trial.configuration, trial.round): trial for trial in trials}

    def __len__(self) -> int:
        return len(self._trials)

    def find(self, configuration: Configuration, number: int) -> Trial | None:
        """The trial of that configuration in that round."""
        return self._trials.get((configuration, number))

    def add(self, trial: Trial) -> None:
        """Write a trial down."""
        self._trials[trial.configuration, trial.round] = trial
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
        fresh_path.write_text(_line(terms.to_json()) + "".join(_line(trial.to_json()) for trial in trials), encoding="utf-8")
        with fresh_path.open("a", encoding="utf-8") as rewritten:
            fcntl.flock(rewritten, fcntl.LOCK_EX)  # before it takes the place of the one that others find locked
            fresh_path.rename(path)
            yield Journal(rewritten, trials)


def _read(file: IO[str], path: Path, terms: Terms) -> list[Trial]:
    """Trials that are valid under ``terms``. A last line without an end was never finished."""
    file.seek(0)
    try:
        lines = [json.loads(line) for line in file if line.endswith("\n")]
        return terms.valid(lines[0], [Trial.from_json(line) for line in lines[1:]]) if lines else []
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", hint="begin anew with: tritonize tune --fresh") from error


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"
