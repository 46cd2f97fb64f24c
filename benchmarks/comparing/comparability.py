"""What two reports have in common besides their figures: the machine, what was asked for, the files that ran, the versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.pages.formatting import answer
from benchmarks.report import Report, length_key

MACHINE = ("cpu", "cores", "gpus")
ASKED = ("rows", "duration", "rounds", "seed", "max_length", "test", "tokens")
YARDSTICK_LIBRARIES = ("torch", "transformers")
TAKEN_PERCENT = 10
"""Of the processor time: one that is told by processes of several threads far more than by those of one."""
COMMIT = 8


def title(report: Report) -> str:
    """Which report it is, on one line."""
    commit = str(report.environment.get("commit") or "unknown")
    changed = "+changes" if commit.endswith("+changes") else ""
    return f"{report.name} of {report.created}, commit {commit[:COMMIT]}{changed}"


def other_machine(before: Report, now: Report) -> str:
    """What differs of the machine or the device, empty where nothing does."""
    keys = [*_differing(before.environment, now.environment, MACHINE), *_differing(before.settings, now.settings, ("device",))]
    return "; ".join(keys)


def taken_away(before: Report, now: Report) -> str:
    """Whether others, on this machine or its host's other guests, took so much of the processor time of a run that its speeds say
    more about them: which run, and how much; empty where they did not."""
    told = []
    for which, report in (("before", before), ("now", now)):
        percent = sum(report.environment.get(key) or 0.0 for key in ("others_percent", "stolen_percent"))
        if percent > TAKEN_PERCENT:
            told.append(f"{percent:.0f} % of it in the run {which}")
    return " and ".join(told)


def other_yardstick(before: Report, now: Report) -> str:
    """Which of the libraries that run the yardstick have other versions, empty where none has."""
    return "; ".join(_differing(_versions(before), _versions(now), YARDSTICK_LIBRARIES))


def same_labelled_rows(before: Report, now: Report) -> bool | None:
    """Whether quality was measured on the same rows; None where a report does not say on which."""
    checksums = [report.settings.get("rows_sha256") for report in (before, now)]
    return None if None in checksums else checksums[0] == checksums[1]


def same_timed_rows(before: Report, now: Report, length: int | None) -> bool:
    """Whether speed was measured on the same rows of ``length`` tokens (None: on the same rows as they are), cut at the same."""
    return _timed_rows(before, length) == _timed_rows(now, length)


def _timed_rows(report: Report, length: int | None) -> tuple[Any, Any]:
    checksums = report.settings.get("timed_sha256")
    own = checksums.get(length_key(length)) if isinstance(checksums, dict) else checksums
    return own, report.settings.get("max_length")


def differences(before: Report, now: Report) -> list[str]:
    """Everything that keeps the two from being runs of one build, a line each."""
    found = []
    if before.task != now.task:
        found.append(f"another task: {before.task} → {now.task}")
    if asked := _differing(before.settings, now.settings, ASKED):
        found.append(f"measured otherwise: {'; '.join(asked)}")
    ours, theirs = _files(before), _files(now)
    if changed := [name for name in ours if name in theirs and ours[name] != theirs[name]]:
        found.append(f"other files ran: {', '.join(changed)}")
    versions = _differing(_versions(before), _versions(now), sorted(_versions(before).keys() | _versions(now).keys()))
    if versions:
        found.append(f"other versions: {'; '.join(versions)}")
    return found


def _files(report: Report) -> dict[str, str]:
    found = {model.name: model.sha256 for model in report.in_process}
    return found if report.served is None else found | {report.served.name: report.served.sha256}


def _versions(report: Report) -> Mapping[str, Any]:
    versions: dict[str, Any] = report.environment.get("versions", {})
    driver = report.environment.get("driver")
    return versions | ({"NVIDIA driver": driver} if driver else {})


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], keys: Any) -> list[str]:
    return [f"{key} {_told(before.get(key))} → {_told(now.get(key))}" for key in keys if before.get(key) != now.get(key)]


def _told(value: Any) -> str:
    return "none" if value in (None, []) else answer(value) if isinstance(value, dict) else str(value)
