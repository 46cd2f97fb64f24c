"""The ``compare`` command: two reports → what became worse, and what better."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.options import tolerances

if TYPE_CHECKING:
    from benchmarks.report import Report


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path, exists=True), metavar="BEFORE")
@click.argument("now", type=click.Path(path_type=Path, exists=True), metavar="NOW")
@tolerances
@click.option("--all", "everything", is_flag=True, help="List the figures that stayed the same too.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON on standard output.")
@click.option(
    "--markdown", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the tables as Markdown too."
)
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write every figure as a test too.")
def compare_command(
    before: Path,
    now: Path,
    max_regression: float,
    max_quality_drop: float,
    any_machine: bool,
    everything: bool,
    as_json: bool,
    markdown: Path | None,
    junit: Path | None,
) -> None:
    """Compare two reports: report.json, or the folder it stands in.

    Speeds are compared beside PyTorch's in the same rounds, so that a machine that is slower today fails nothing, and count as
    changed only beyond what the rounds of both reports differ among themselves. Exits with 1 when something is worse.
    """
    from benchmarks.benchmark_options import Tolerances
    from benchmarks.comparing.compare import compare
    from benchmarks.comparing.rendering import require_no_worse, to_markdown, to_text
    from benchmarks.junit import write_comparison

    reports = _read("BEFORE", before), _read("NOW", now)
    tolerances = Tolerances(max_regression=max_regression, max_quality_drop=max_quality_drop, any_machine=any_machine)
    compared = compare(*reports, tolerances)
    if markdown is not None:
        markdown.write_text(to_markdown(compared, everything=everything), encoding="utf-8")
    if junit is not None:
        write_comparison(junit, compared)
    click.echo(json.dumps(asdict(compared), indent=2, ensure_ascii=False) if as_json else to_text(compared, everything=everything))
    require_no_worse(compared)


def _read(argument: str, path: Path) -> Report:
    from benchmarks.report_file import read_report
    from serving.errors import DataError

    try:
        return read_report(path)
    except DataError as error:
        raise click.UsageError(f"{argument}: {error.message} ({error.hint})") from None
