"""The ``benchmark`` command."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from benchmarks.benchmark_options import BenchmarkOptions, Tolerances
from benchmarks.options import with_model_name
from export.columns import Columns
from serving.access_options import AccessOptions
from serving.click_options import with_options
from serving.commands import check_access
from serving.idle_options import flags_of, refuse_idle
from serving.options import OutputOptions, ServerAddress
from serving.reporting import logger

if TYPE_CHECKING:
    from benchmarks.report import Report


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
    options = prepare_benchmark(model, options)
    from benchmarks.run import run_benchmark

    report = run_benchmark(options)
    if output.json:
        click.echo(json.dumps(report.figures(), indent=2))
    else:
        from benchmarks.pages.terminal import render

        click.echo(render(report))
    sys.stdout.flush()
    finish_benchmark(report, options)


def prepare_benchmark(model: str | None, options: BenchmarkOptions) -> BenchmarkOptions:
    """Set the name of the model, and refuse options that have no effect or cannot be used.

    The context of a Click command tells which were given.
    """
    if options.in_process:
        refuse_idle([*flags_of(ServerAddress), *flags_of(AccessOptions), "--protocol", "--rate"], "with --in-process")
    else:
        check_access(options.access)
    if options.test is None:
        refuse_idle(flags_of(Columns), "without --test: the rows in the bundle have no columns to choose")
    if options.baseline is None:
        refuse_idle(flags_of(Tolerances), "without --baseline")
    options = with_model_name(click.get_current_context(), model, options)
    _refuse_for_kind(options)
    return options


def _refuse_for_kind(options: BenchmarkOptions) -> None:
    """Refuse options that have no effect for the kind of the model."""
    from serving.bundle import load_bundle
    from serving.runtime.tasks._generation import GenerationTask

    if isinstance(load_bundle(options.bundle_folder).task, GenerationTask):
        refuse_idle(["--batch", "--rate", "--compile"], "for a model that generates its answers")
        return
    refuse_idle(["--new-tokens"], "for a model that answers in one execution")
    if options.in_process:
        refuse_idle(["--concurrency"], "with --in-process")


def finish_benchmark(report: Report, options: BenchmarkOptions) -> None:
    """Say where the report is, and check its gates.

    Raises:
        GateError: A gate failed, or a figure is worse than the baseline allows.
    """
    from benchmarks.run import require_passed

    page = options.report_folder / "report.html"
    logger.info(f"report: {page}   for a pull request: report.md   all figures and samples: report.json")
    require_passed(report)
