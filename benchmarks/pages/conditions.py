"""Conditions of a measurement: the machine, the versions, the settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from benchmarks.environment import Environment
from benchmarks.pages.formatting import answer
from benchmarks.report import Report
from serving.reporting import plural

SHOWN_PERCENT = 1
"""Share of the processor time that others used. Beyond this, it is shown with the machine."""


def machine(report: Report) -> str:
    """Describe the machine in one line."""
    found = report.environment
    gpus = "; ".join(found.gpus) or "no GPU"
    return (
        f"{found.cpu}, {found.cores} {plural(found.cores, 'core')}, {found.memory_mib} MiB, {gpus} · "
        f"{found.busy_percent:.0f} % busy with other work when it began{''.join(_foreign_work(found))}"
    )


def _foreign_work(environment: Environment) -> Iterator[str]:
    others, stolen = environment.others_percent, environment.stolen_percent
    if others is not None and others > SHOWN_PERCENT:
        yield f" · while it ran, other processes took {others:.0f} % of the processor time"
    if stolen is not None and stolen > SHOWN_PERCENT:
        yield f" · while it ran, the host took {stolen:.0f} % of it away"


def method(report: Report) -> str:
    """Describe the method in sentences."""
    settings = report.settings
    if report.answers_whole:
        return _whole_answers(report)
    if settings.new_tokens is not None:
        return (
            f"All models continue the same prompts greedily by {settings.new_tokens} tokens, whatever would end a text, for "
            f"{settings.duration:g} s or more each, in turns: {settings.rounds} rounds, each on its own share of {settings.rows} "
            "prompts, of which a slow model answers fewer. In each round, all clients send equally many requests. tokens/s is the "
            "median of the rounds (lowest–highest), with tokenization and prompts in the time; waits are those of all rounds "
            f"together; the answers to {settings.labelled_rows} prompts are compared token for token."
        )
    return (
        f"All models answer the same {settings.rows} texts, tokenization included, for {settings.duration:g} s or more each, in "
        f"turns: {settings.rounds} rounds, each on its own share of the texts. rows/s is the median of the rounds "
        f"(lowest–highest), latencies are those of all rounds together; quality on {settings.labelled_rows} labelled rows."
    )


def _whole_answers(report: Report) -> str:
    settings, beams = report.settings, report.settings.num_beams or 1
    how = f"by beam search with {beams} beams" if beams > 1 else "greedily"
    return (
        f"All models answer the same texts {how} with the options of the checkpoint, and every timed answer has "
        f"{settings.new_tokens} tokens, for {settings.duration:g} s or more each, in turns: {settings.rounds} rounds, each on its "
        f"own share of {settings.rows} texts, of which a slow model answers fewer. In each round, all clients send equally many "
        "requests. tokens/s counts the tokens of the answers that are returned, and is the median of the rounds (lowest–highest); "
        "latencies are those of whole answers, of all rounds together. Quality is that of the answers to "
        f"{settings.labelled_rows} texts, which end where the model ends them."
    )


def conditions(report: Report) -> list[tuple[str, str]]:
    """List everything recorded about machine and run, each with its name."""
    found = report.environment
    drivers = {"NVIDIA driver": found.driver} if found.driver else {}
    settings = {name: value for name, value in asdict(report.settings).items() if value != {}}
    return [
        ("measured", report.created),
        ("commit", found.commit or "unknown"),
        ("machine", machine(report)),
        ("versions", ", ".join(f"{name} {version}" for name, version in (found.versions | drivers).items())),
        ("system", found.system),
        *((name.replace("_", " "), "not set" if value is None else answer(value)) for name, value in settings.items()),
    ]
