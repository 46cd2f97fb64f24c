"""What figures were measured under: the machine, the versions, the settings."""

from __future__ import annotations

from typing import Any

from benchmarks.pages.words import answer
from benchmarks.report import Report

STOLEN_PERCENT = 1
"""Share of the processor time given to others by the host, from which on it is told with the machine."""
_MACHINE = ("cpu", "cores", "memory_mib", "gpus", "driver", "busy_percent", "stolen_percent", "versions", "commit")


def machine(report: Report) -> str:
    """The machine in a line."""
    found = report.environment
    gpus = "; ".join(found["gpus"]) or "no GPU"
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['memory_mib']} MiB, {gpus} · {found['busy_percent']:.0f} % busy with "
        f"other work when it began{_stolen(found)}"
    )


def _stolen(environment: dict[str, Any]) -> str:
    percent = environment["stolen_percent"]
    if percent is None or percent <= STOLEN_PERCENT:
        return ""
    return f" · the host took {percent:.0f} % of the processor time away while it ran"


def method(report: Report) -> str:
    """How it was measured, as sentences."""
    settings = report.settings
    return (
        f"All on the same {settings['rows']} texts, tokenization counted, {settings['duration']:g} s or more each, in turns: "
        f"{settings['rounds']} rounds, each on its own share of the texts. rows/s is the median of the rounds (lowest–highest), "
        f"latencies are those of all rounds together; quality on {settings['labelled_rows']} labelled rows."
    )


def conditions(report: Report) -> list[tuple[str, str]]:
    """Everything that was noted about machine and run, each with its name."""
    found = report.environment
    drivers = {"NVIDIA driver": driver} if (driver := found.get("driver")) else {}
    versions = ", ".join(f"{name} {version}" for name, version in (found["versions"] | drivers).items())
    others = [(name, value) for name, value in (found | report.settings).items() if name not in _MACHINE]
    return [
        ("measured", report.created),
        ("commit", found["commit"] or "unknown"),
        ("machine", machine(report)),
        ("versions", versions),
        *((name.replace("_", " "), "not set" if value is None else answer(value)) for name, value in others),
    ]
