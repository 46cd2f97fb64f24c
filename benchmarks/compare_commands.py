"""The ``compare`` command."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.benchmark_options import CompareOptions, Tolerances
from serving.click_options import with_options
from serving.options import OutputOptions
from serving.writing import writing

if TYPE_CHECKING:
    from benchmarks.report import Report


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path, exists=True), metavar="BEFORE")
@click.argument("now", type=click.Path(path_type=Path, exists=True), metavar="NOW")
@with_options
def compare_command(before: Path, now: Path, tolerances: Tolerances, options: CompareOptions, output: OutputOptions) -> None:
    """Compare two reports: report.json, or the folder it stands in.

    Speeds are compared relative to PyTorch's in the same rounds, so that a slower machine causes no failure. A change counts only
    if it is larger than the measurement noise that the rounds of both reports show. The exit code is 1 if something is worse.
    """
    from benchmarks.comparing.compare import compare
    from benchmarks.comparing.rendering import require_no_worse, to_markdown, to_text
    from benchmarks.junit import write_comparison

    compared = compare(_read("BEFORE", before), _read("NOW", now), tolerances)
    if options.markdown is not None:
        with writing(options.markdown):
            options.markdown.write_text(to_markdown(compared, everything=options.everything), encoding="utf-8")
    if options.junit is not None:
        write_comparison(options.junit, compared)
    if output.json:
        click.echo(json.dumps(asdict(compared), indent=2, ensure_ascii=False))
    else:
        click.echo(to_text(compared, everything=options.everything))
    require_no_worse(compared)


def _read(argument: str, path: Path) -> Report:
    from benchmarks.report_file import read_report
    from serving.errors import DataError

    try:
        return read_report(path)
    except DataError as error:
        raise click.UsageError(f"{argument}: {error.message_with_hint}") from None
