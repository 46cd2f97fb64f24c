"""The ``benchmark`` command."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import click

from benchmarks.benchmark_options import BenchmarkOptions
from benchmarks.options import chosen_name
from serving.click_options import with_options
from serving.options import OutputOptions
from serving.reporting import logger


@click.command("benchmark")
@click.argument("model", metavar="NAME", required=False)
@with_options
def benchmark_command(model: str | None, options: BenchmarkOptions, output: OutputOptions) -> None:
    """Measure speed and quality of a served model against its PyTorch original, all on the same real texts.

    Measures PyTorch, transformers' pipeline and every ONNX variant in process, and the running server over gRPC and HTTP, in
    turns, so that a change of the machine's speed affects all of them alike. A gate passes if it holds in most rounds. All models
    stay loaded until the end; a big model may need fewer --precision to fit into memory. Writes report.html, report.md and
    report.json, which holds every raw sample. The exit code is 1 if a gate fails.
    """
    options = replace(options, name=chosen_name(click.get_current_context(), model, options.name))
    from benchmarks.run import require_passed, run_benchmark

    report = run_benchmark(options)
    if output.json:
        click.echo(json.dumps(report.figures(), indent=2))
    else:
        from benchmarks.pages.terminal import render

        click.echo(render(report))
    page = options.report_folder / "report.html"
    logger.info(f"report: {page}   for a pull request: report.md   all figures and samples: report.json")
    sys.stdout.flush()
    require_passed(report)
