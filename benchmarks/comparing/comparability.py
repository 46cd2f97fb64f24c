"""Whether two reports can be compared: machine, settings, files and versions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict

from pydantic import JsonValue

from benchmarks.pages.formatting import answer
from benchmarks.report import Report, length_key

MACHINE = ("cpu", "cores", "gpus")
SETTINGS = ("rows", "duration", "rounds", "seed", "max_length", "test", "tokens", "new_tokens", "num_beams")
REFERENCE_LIBRARIES = ("torch", "transformers")
TAKEN_PERCENT = 10
"""Share of the processor time. Processes of several threads lose far more of their speed to it than processes of one thread."""
COMMIT = 8


def title(report: Report) -> str:
    """Name a report in one line: model, time and commit."""
    commit = report.environment.commit or "unknown"
    changed = "+changes" if commit.endswith("+changes") else ""
    return f"{report.name} of {report.created}, commit {commit[:COMMIT]}{changed}"


def other_machine(before: Report, now: Report) -> str:
    """Describe how the machine or the device differs; empty if it does not."""
    machine = _differing(asdict(before.environment), asdict(now.environment), MACHINE)
    return "; ".join([*machine, *_differing(asdict(before.settings), asdict(now.settings), ("device",))])


def taken_away(before: Report, now: Report) -> str:
    """Describe in which run other processes, or other guests of the host, used too much processor time; empty if in neither."""
    found = []
    for which, report in (("before", before), ("now", now)):
        percent = (report.environment.others_percent or 0.0) + (report.environment.stolen_percent or 0.0)
        if percent > TAKEN_PERCENT:
            found.append(f"{percent:.0f} % of it in the run {which}")
    return " and ".join(found)


def other_reference(before: Report, now: Report) -> str:
    """Describe which libraries that run the reference have other versions; empty if none has."""
    return "; ".join(_differing(_versions(before), _versions(now), REFERENCE_LIBRARIES))


def same_labelled_rows(before: Report, now: Report) -> bool | None:
    """Whether quality was measured on the same rows; None if a report has no checksum of its rows."""
    checksums = before.settings.rows_sha256, now.settings.rows_sha256
    return None if None in checksums else checksums[0] == checksums[1]


def same_timed_rows(before: Report, now: Report, length: int | None) -> bool:
    """Whether speed was measured on the same rows of ``length`` tokens (None: as they are).

    That includes the length at which they are truncated, and the length and the beams of the answers of a model that generates.
    """
    key = length_key(length)
    found = [one.settings for one in (before, now)]
    ours, theirs = ((one.timed_sha256.get(key), one.max_length, one.new_tokens, one.num_beams) for one in found)
    return ours == theirs


def differences(before: Report, now: Report) -> list[str]:
    """List everything that keeps the two from being runs of one build, a line each."""
    found = []
    if before.task != now.task:
        found.append(f"another task: {before.task} → {now.task}")
    if settings := _differing(asdict(before.settings), asdict(now.settings), SETTINGS):
        found.append(f"other settings: {'; '.join(settings)}")
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


def _versions(report: Report) -> dict[str, str]:
    driver = report.environment.driver
    return report.environment.versions | ({"NVIDIA driver": driver} if driver else {})


def _differing(before: Mapping[str, JsonValue], now: Mapping[str, JsonValue], keys: Iterable[str]) -> list[str]:
    return [f"{key} {_shown(before.get(key))} → {_shown(now.get(key))}" for key in keys if before.get(key) != now.get(key)]


def _shown(value: JsonValue) -> str:
    return "none" if value in (None, [], {}) else answer(value) if isinstance(value, dict) else str(value)
