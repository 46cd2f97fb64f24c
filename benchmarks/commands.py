"""The ``benchmark`` command: options → one typed object → :func:`benchmarks.run.run_benchmark`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.options import choices, chosen_name, counts, exported_model, listed, tolerances
from serving.options import PRECISIONS

if TYPE_CHECKING:
    from benchmarks.benchmark_options import BenchmarkOptions

PROTOCOLS = ("grpc", "http")


def _open_loops(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[Any, ...]:
    from benchmarks.benchmark_options import OpenLoop

    found = []
    for part in listed(values, may_be_none=True):
        try:
            number = float(part.removesuffix("%"))
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf") or (part.endswith("%") and number != int(number)):
            raise click.BadParameter(f"{part!r} is neither a rate such as 100 nor a share such as 80%", ctx, parameter)
        found.append(OpenLoop(share=number / 100) if part.endswith("%") else OpenLoop(rate=number))
    return tuple(dict.fromkeys(found))


def _gates(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """A gate that cannot be read is told before anything is measured."""
    if values:
        from benchmarks.gates import parse_gate
        from serving.errors import DataError

        for value in values:
            try:
                parse_gate(value)
            except DataError as error:
                raise click.BadParameter(f"{error.message} ({error.hint})", ctx, parameter) from None
    return values


@click.command("benchmark")
@exported_model
@click.option("--checkpoint", help="The PyTorch original: a folder, or a name on the Hub.  [default: ARTIFACTS/NAME/checkpoint]")
@click.option(
    "--repository",
    type=click.Path(path_type=Path),
    default=Path("model_repository"),
    help="The model repository that the server was started on.",
)
@click.option("--host", default="127.0.0.1", help="Where the server listens.")
@click.option("--http-port", type=click.IntRange(1, 65535), default=8000)
@click.option("--grpc-port", type=click.IntRange(1, 65535), default=8001)
@click.option("--metrics-port", type=click.IntRange(1, 65535), default=8002)
@click.option("--in-process", is_flag=True, help="Measure without a server: PyTorch and ONNX Runtime only.")
@click.option(
    "--precision",
    multiple=True,
    callback=choices(PRECISIONS),
    help="ONNX variants to run in process.  [default: all of the bundle]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", help="Where to run in process.")
@click.option("--protocol", multiple=True, default=PROTOCOLS, callback=choices(PROTOCOLS), help="How to ask the server.")
@click.option(
    "--concurrency",
    multiple=True,
    default=("1", "4", "16", "64"),
    callback=counts(),
    metavar="N[,N…]",
    help="Clients of a closed loop: requests kept in flight.",
)
@click.option(
    "--rate",
    multiple=True,
    default=("50%", "80%"),
    callback=_open_loops,
    metavar="N|N%[,…]|none",
    help="Open loops: requests per second that come at random moments, or a share of the best closed loop's throughput.",
)
@click.option(
    "--length",
    multiple=True,
    default=("16", "64", "128", "384"),
    callback=counts(may_be_none=True),
    metavar="N[,N…]|none",
    help="Tokens: real rows brought to one length, beside those as they are.",
)
@click.option(
    "--batch", multiple=True, default=("1", "8", "32"), callback=counts(), metavar="N[,N…]", help="Rows per call in process."
)
@click.option("--exported/--no-exported", default=True, help="Run the ONNX graph as Optimum exports it, before any fusion, too.")
@click.option("--compile", "compiled", is_flag=True, help="Run the original through torch.compile too.")
@click.option("--test", metavar="FILE|hub:NAME", help="Labelled rows to measure on.  [default: those in the bundle]")
@click.option("--text-column", help="Column of the text in --test.")
@click.option("--text-pair-column", help="Column of the second text in --test.")
@click.option("--label-column", help="Column of the label in --test.")
@click.option("--rows", type=click.IntRange(min=2), default=512, help="Texts that speed is measured on.")
@click.option(
    "--duration",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    help="Seconds of timing for each figure, all rounds together.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=5, help="Turns that every way of answering gets; best an odd number.")
@click.option(
    "--gate",
    multiple=True,
    callback=_gates,
    metavar="EXPRESSION",
    help="A comparison that must hold, such as 'served.int8.c16.throughput >= 2 * pytorch.fp32.throughput'.",
)
@click.option("--baseline", type=click.Path(path_type=Path), metavar="FILE", help="Report of an earlier run to compare with.")
@tolerances
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Write gates and the comparison as JUnit XML too.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for the report.  [default: benchmarks/reports/NAME-TIME]")
@click.option("--seed", type=int, default=0, help="Draws and orders the texts.")
@click.option("--json", "as_json", is_flag=True, help="Print every figure as JSON on standard output, by the name gates use.")
@click.pass_context
def benchmark_command(ctx: click.Context, /, *, model: str | None, name: str | None, as_json: bool, **options: Any) -> None:
    """Measure speed and quality of a served model against its PyTorch original, all on the same real texts.

    Measures PyTorch, transformers' pipeline and every ONNX variant in process, and the running server over gRPC and HTTP, by
    turns: a drift of the machine's speed meets all of them alike. A gate holds if it does in most rounds. All models stay
    loaded until the end, so a big one needs memory for many copies; fewer --precision need less. Writes report.html,
    report.md and report.json, which holds every raw sample; exits with 1 when a gate fails.
    """
    chosen = chosen_name(ctx, model, name)
    from benchmarks.run import require_passed, run_benchmark

    def say(line: str) -> None:
        click.echo(line, err=True)

    typed = _options(chosen, options)
    report = run_benchmark(typed, say)
    if as_json:
        click.echo(json.dumps(report.figures(), indent=2))
    else:
        from benchmarks.pages.terminal import render

        click.echo(render(report))
    click.echo(
        f"report: {typed.report_folder / 'report.html'}   for a pull request: report.md   all figures and samples: report.json",
        err=True,
    )
    sys.stdout.flush()
    require_passed(report)


def _options(name: str, values: dict[str, Any]) -> BenchmarkOptions:
    from benchmarks.benchmark_options import BenchmarkOptions, Endpoint, Tolerances
    from export.columns import Columns

    take = values.pop
    label = take("label_column")
    return BenchmarkOptions(
        name=name,
        endpoint=Endpoint(**{key: take(key) for key in ("host", "http_port", "grpc_port", "metrics_port")}),
        columns=Columns(text=take("text_column"), text_pair=take("text_pair_column"), labels=() if label is None else (label,)),
        precisions=take("precision"),
        batches=take("batch"),
        lengths=take("length"),
        open_loops=take("rate"),
        protocols=take("protocol"),
        concurrencies=take("concurrency"),
        gates=take("gate"),
        tolerances=Tolerances(**{key: take(key) for key in ("max_regression", "max_quality_drop", "any_machine")}),
        **values,
    )
