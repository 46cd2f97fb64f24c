"""The commands ``package``, ``serve``, ``stop``, ``predict`` and ``doctor``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from serving.click_options import ParsedText, with_options
from serving.options import (
    OutputOptions,
    PackageOptions,
    PredictOptions,
    RequestOptions,
    ServeOptions,
    ServerAddress,
    ServerPort,
    StartOptions,
    parse_model_name,
)
from serving.reporting import console, logger

if TYPE_CHECKING:
    from serving.client import TritonPipeline
    from serving.predict import PredictFile

T = TypeVar("T")


@click.command("package")
@with_options
def package_command(options: PackageOptions, output: OutputOptions) -> None:
    """Turn a bundle into a Triton model repository, in one atomic step.

    If tritonize tune has found a configuration for this bundle, on a machine with as many cores or the same GPUs, it replaces the
    defaults.
    """
    from serving.repository import package

    packaged = package(options)
    manifest = packaged.manifest
    if output.json:
        click.echo(json.dumps(manifest.model_dump(mode="json"), ensure_ascii=False))
        return
    for option, reason in manifest.reasons.items():
        logger.info(f"  {option} {reason}")
    state = "is up to date" if packaged.unchanged else "is packaged"
    shape = f"{manifest.instances} instance(s) of {manifest.threads} thread(s)"
    kind = f"{manifest.precision} on {manifest.device}, batching {manifest.batching}"
    click.echo(f"{options.repository / options.name} {state}: {kind}, {shape}")


@click.command("serve")
@with_options
def serve_command(options: ServeOptions, start: StartOptions) -> None:
    """Start Triton and wait until every ensemble answers."""
    from serving.background import start_detached
    from serving.server_record import find_running
    from serving.supervisor import supervise

    if start.detach:
        log = start_detached(options)
        if (running := find_running(options.http_port)) is not None:
            _announce(options, Path(running.served), running.left_out)
        click.echo(f"its log: {log}   stop it with: tritonize stop --http-port {options.http_port}")
        return
    supervise(options, on_ready=lambda view: _announce(options, view.folder, view.left_out))


@click.command("stop")
@with_options
def stop_command(port: ServerPort) -> None:
    """Drain and stop a server that tritonize serve has started."""
    from serving.background import stop

    running = stop(port.http_port)
    click.echo(f"stopped the server at HTTP port {port.http_port} (process {running.pid})")


@click.command("predict")
@click.argument("name", type=ParsedText(parse_model_name))
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@with_options
def predict_command(
    name: str, texts: tuple[str, ...], options: PredictOptions, requests: RequestOptions, output: OutputOptions
) -> None:
    """Ask a running server: TEXTs from the command line, lines from standard input, or rows from a file.

    For an ensemble that takes pairs, give each pair as JSON: '{"text": "…", "text_pair": "…"}', with the keys of its task.
    """
    if (options.input is None) != (options.output is None):
        raise click.UsageError("--input and --output go together")
    if options.input is not None and texts:
        raise click.UsageError("give texts or --input, not both")
    from serving.client import TritonPipeline
    from serving.predict import PredictFile, named_columns

    with TritonPipeline(
        name,
        url=requests.url,
        protocol=requests.protocol,
        batch_size=requests.batch_size,
        concurrency=requests.concurrency,
        timeout=requests.timeout,
    ) as pipe:
        if options.input is None or options.output is None:
            _predict_lines(pipe, texts, as_json=output.json)
            return
        columns = named_columns(pipe, options.text_column, options.text_pair_column, options.choice_column)
        _predict_file(pipe, PredictFile(input=options.input, output=options.output, columns=columns))


@click.command("doctor")
@with_options
def doctor_command(address: ServerAddress, output: OutputOptions) -> None:
    """Check this machine and both environments; say what to fix. The exit code is 1 if a check fails."""
    from serving.doctor import examine
    from serving.errors import SetupError

    findings = []
    for finding in examine(address):
        findings.append(finding)
        if not output.json:
            mark = click.style("ok ", fg="green") if finding.ok else click.style("FIX", fg="red")
            click.echo(f"{mark} {finding.check}: {finding.found}" + ("" if finding.ok else f"\n    → {finding.hint}"))
    if output.json:
        click.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False))
    wrong = [finding.check for finding in findings if not finding.ok]
    if wrong:
        raise SetupError(f"{len(wrong)} of {len(findings)} checks failed: {', '.join(wrong)}")


def _announce(options: ServeOptions, served: Path, left_out: Iterable[str]) -> None:
    from serving.probe import find_probes

    probes = find_probes(served)
    missing = f"   left out: {', '.join(left_out)}" if left_out else ""
    click.echo(f"ready: {', '.join(probe.ensemble for probe in probes)}{missing}")
    click.echo(f"  HTTP {options.base_url}   gRPC {options.grpc_url}   metrics {options.metrics_url}")
    click.echo(f"  {probes[0].curl(options.base_url)}")


def _predict_lines(pipe: TritonPipeline, texts: tuple[str, ...], *, as_json: bool) -> None:
    from serving.predict import PipelineRow, argument_lines, check_row, input_lines, line_rows

    def rows() -> Iterator[str | PipelineRow]:
        for row in line_rows(lines, keys=pipe.served_task.row_keys):
            check_row(pipe, row)
            yield row

    lines = argument_lines(texts) if texts else input_lines()
    for answer in pipe.stream(rows()):
        if isinstance(answer, dict) and set(answer) == {"label", "score"} and not as_json:
            click.echo(f"{answer['label']}\t{answer['score']:.4f}")
        else:
            click.echo(json.dumps(answer, ensure_ascii=False))


def _predict_file(pipe: TritonPipeline, files: PredictFile) -> None:
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    from serving.predict import predict_file

    def shown(answers: Iterable[T], done: int) -> Iterator[T]:
        columns = [TextColumn("{task.completed} rows"), TimeElapsedColumn()]
        with Progress(*columns, console=console(), disable=not console().is_terminal) as bar:
            yield from bar.track(answers, total=None, completed=done)

    done, answered = predict_file(pipe, files, progress=shown)
    logger.info(f"{files.output}: {answered} rows answered" + (f", {done} were there already" if done else ""))
