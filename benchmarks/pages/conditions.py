"""What figures were measured under: the machine, the versions, the settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.pages.formatting import answer
from benchmarks.report import Report

TOLD_PERCENT = 1
"""Share of the processor time that others took, from which on it is told with the machine."""
_MACHINE = (
    "cpu",
    "cores",
    "memory_mib",
    "gpus",
    "driver",
    "busy_percent",
    "others_percent",
    "stolen_percent",
    "versions",
    "commit",
)


def machine(report: Report) -> str:
    """The machine in a line."""
    found = report.environment
    gpus = "; ".join(found["gpus"]) or "no GPU"
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['memory_mib']} MiB, {gpus} · {found['busy_percent']:.0f} % busy with "
        f"other work when it began{''.join(_taken(found))}"
    )


def _taken(environment: dict[str, Any]) -> Iterator[str]:
    takers = {"other processes took {} of the processor time": "others_percent", "the host took {} of it away": "stolen_percent"}
    for told, key in takers.items():
        percent = environment.get(key)
        if percent is not None and percent > TOLD_PERCENT:
            yield f" · while it ran, {told.format(f'{percent:.0f} %')}"


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
