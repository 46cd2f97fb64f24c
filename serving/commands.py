"""``package``, ``serve``, ``stop``, ``predict``, ``doctor``: options in, one call, words out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

REPOSITORY = click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("model_repository"),
    help="Folder of Triton models.",
)
HTTP_PORT = click.option("--http-port", type=click.IntRange(1, 65535), default=8000)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of words.")


@click.command("package")
@click.option("--name", required=True, help="What clients call the ensemble.")
@click.option(
    "--bundle", type=click.Path(file_okay=False, path_type=Path), help="Folder that export wrote.  [default: artifacts/NAME/bundle]"
)
@REPOSITORY
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "fp16", "int8"]),
    default="auto",
    help="Variant to serve; auto: fp16 on a GPU, on a CPU the fastest that passed its gates.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto")
@click.option(
    "--batching",
    type=click.Choice(["auto", "ragged", "off"]),
    default="auto",
    help="ragged: requests of mixed length share an execution; auto: that on a GPU, on a CPU what measured faster; never for int8.",
)
@click.option(
    "--instances", type=click.IntRange(1, 256), help="Copies of the model.  [default: one per core without batching, else 1]"
)
@click.option("--threads", type=click.IntRange(1, 256), help="CPU threads of each copy.  [default: the cores, shared out]")
@click.option("--max-batch-size", type=click.IntRange(1, 4096), help="Most rows in one request.  [default: 64]")
@click.option(
    "--queue-delay-us",
    type=click.IntRange(0, 10_000_000),
    help="Microseconds a request may wait for others to share its execution, with ragged batching.  [default: 0]",
)
@click.option("--force", is_flag=True, help="Package again though nothing has changed.")
@AS_JSON
def package_command(*, name: str, bundle: Path | None, as_json: bool, **options: Any) -> None:
    """Turn a bundle into a Triton model repository, in one atomic step.

    What is left open is as tritonize tune found it best, where it was run on such a machine and is still of this bundle.
    """
    from serving.repository import PackageOptions, package

    check_name(name)
    packaged = package(PackageOptions(name=name, bundle=bundle or Path("artifacts") / name / "bundle", **options))
    manifest = packaged.manifest
    if as_json:
        click.echo(json.dumps(manifest.model_dump(mode="json"), ensure_ascii=False))
        return
    for option, reason in manifest.reasons.items():
        click.echo(f"  {option} {reason}", err=True)
    state = "is up to date" if packaged.unchanged else "is packaged"
    shape = f"{manifest.instances} instance(s) of {manifest.threads} thread(s)"
    kind = f"{manifest.precision} on {manifest.device}, batching {manifest.batching}"
    click.echo(f"{options['repository'] / name} {state}: {kind}, {shape}")


@click.command("serve")
@REPOSITORY
@click.option(
    "--host", default="127.0.0.1", help="Address to listen on. Anything but a loopback address opens the server to others."
)
@HTTP_PORT
@click.option("--grpc-port", type=click.IntRange(1, 65535), default=8001)
@click.option("--metrics-port", type=click.IntRange(1, 65535), default=8002)
@click.option("--ready-timeout", type=click.FloatRange(min=1), default=300.0, help="Seconds to wait for the first answers.")
@click.option("--detach", is_flag=True, help="Return when the server is ready and leave it running; end it with: tritonize stop.")
def serve_command(*, detach: bool, **values: Any) -> None:
    """Start Triton and wait until every ensemble really answers."""
    from serving.server import ServeOptions
    from serving.supervisor import start_detached, supervise

    options = ServeOptions(**values)
    if detach:
        log = start_detached(options)
        _announce(options)
        click.echo(f"its log: {log}   stop it with: tritonize stop --http-port {options.http_port}")
        return
    supervise(options, log=lambda line: click.echo(line, err=True), on_ready=lambda _: _announce(options))


@click.command("stop")
@HTTP_PORT
def stop_command(*, http_port: int) -> None:
    """Drain and stop a server started with serve."""
    from serving.supervisor import stop

    running = stop(http_port)
    click.echo(f"stopped the server at HTTP port {http_port} (process {running.pid})")


def _announce(options: Any) -> None:
    from serving.probe import find_probes

    probes = find_probes(options.repository)
    click.echo(f"ready: {', '.join(probe.ensemble for probe in probes)}")
    metrics = f"{options.base_url.rsplit(':', 1)[0]}:{options.metrics_port}/metrics"
    click.echo(f"  HTTP {options.base_url}   gRPC {options.grpc_url}   metrics {metrics}")
    click.echo(f"  {probes[0].curl(options.base_url)}")


def check_name(name: str) -> None:
    """Refuse a name that could not be a model's.

    Raises:
        click.BadParameter: it is one.
    """
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise click.BadParameter(
            "letters, digits, '.', '_' and '-' only: it becomes a folder and part of URLs", param_hint="--name"
        )


@click.command("predict")
@click.argument("name")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option("--url", help="host:port of the server.  [default: this machine, the protocol's usual port]")
@click.option("--protocol", type=click.Choice(["grpc", "http"]), default="grpc")
@click.option(
    "--input",
    "input_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Rows from a csv, tsv, jsonl or parquet file.",
)
@click.option(
    "--output",
    "output_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Answers as jsonl; one that is there is continued.",
)
@click.option("--text-column", show_default="as the task has it", help="Column of the text in --input, or the first of two.")
@click.option("--text-pair-column", help="Column of the second text, for pairs.")
@click.option("--choice-column", multiple=True, help="Column of the choices; several: of one choice each.")
@click.option("--concurrency", type=click.IntRange(1, 1024), default=16, help="Requests in flight at once.")
@click.option("--batch-size", type=click.IntRange(1, 4096), default=1, help="Rows in one request.")
@click.option("--timeout", type=click.FloatRange(min=0.001), default=60.0, help="Seconds one request may take.")
@AS_JSON
def predict_command(
    *,
    name: str,
    texts: tuple[str, ...],
    input_file: Path | None,
    output_file: Path | None,
    text_column: str | None,
    text_pair_column: str | None,
    choice_column: tuple[str, ...],
    as_json: bool,
    **connection: Any,
) -> None:
    """Ask a running server: TEXTs from the command line, lines from standard input, or rows from a file.

    For an ensemble that takes pairs, give each as JSON: '{"text": "…", "text_pair": "…"}', or what its task calls the two.
    """
    if (input_file is None) != (output_file is None):
        raise click.UsageError("--input and --output go together")
    if input_file is not None and texts:
        raise click.UsageError("give texts or --input, not both")
    from serving.client import TritonPipeline
    from serving.predict import named_columns

    with TritonPipeline(name, **connection) as pipe:
        if input_file is not None and output_file is not None:
            columns = named_columns(pipe, text_column, text_pair_column, choice_column)
            _predict_file(pipe, input_file, output_file, columns)
        else:
            _predict_lines(pipe, texts, as_json=as_json)


@click.command("doctor")
@click.option("--host", default="127.0.0.1", help="Address whose ports are checked.")
@HTTP_PORT
@click.option("--grpc-port", type=click.IntRange(1, 65535), default=8001)
@click.option("--metrics-port", type=click.IntRange(1, 65535), default=8002)
@AS_JSON
def doctor_command(*, as_json: bool, **ports: Any) -> None:
    """Check this machine and both environments; say what to fix. Exit code 1 where something must be."""
    from dataclasses import asdict

    from serving.doctor import examine
    from serving.errors import SetupError
    from serving.server import ServeOptions

    findings = []
    for finding in examine(ServeOptions(repository=Path(), **ports)):
        findings.append(finding)
        if not as_json:
            mark = click.style("ok ", fg="green") if finding.ok else click.style("FIX", fg="red")
            click.echo(f"{mark} {finding.check}: {finding.found}" + ("" if finding.ok else f"\n    → {finding.hint}"))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False))
    wrong = [finding.check for finding in findings if not finding.ok]
    if wrong:
        raise SetupError(f"{len(wrong)} of {len(findings)} checks failed: {', '.join(wrong)}")


def _predict_lines(pipe: Any, texts: tuple[str, ...], *, as_json: bool) -> None:
    from serving.predict import argument_lines, input_lines, line_rows, require_taken

    def rows() -> Iterator[Any]:
        for row in line_rows(lines, keys=pipe.served_task.row_keys):
            require_taken(pipe, row)
            yield row

    lines = argument_lines(texts) if texts else input_lines()
    for answer in pipe.stream(rows()):
        if isinstance(answer, dict) and set(answer) == {"label", "score"} and not as_json:
            click.echo(f"{answer['label']}\t{answer['score']:.4f}")
        else:
            click.echo(json.dumps(answer, ensure_ascii=False))


def _predict_file(pipe: Any, input_file: Path, output_file: Path, columns: Any) -> None:
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    from serving.predict import PredictOptions, predict_file

    def shown(answers: Iterable[Any], done: int) -> Iterator[Any]:
        console = Console(stderr=True)
        columns = [TextColumn("{task.completed} rows"), TimeElapsedColumn()]
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            yield from bar.track(answers, total=None, completed=done)

    done, answered = predict_file(pipe, PredictOptions(input=input_file, output=output_file, columns=columns), progress=shown)
    click.echo(f"{output_file}: {answered} rows answered" + (f", {done} were there already" if done else ""), err=True)
