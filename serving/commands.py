"""The commands ``package``, ``serve``, ``stop``, ``predict`` and ``doctor``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from serving.access_options import AccessOptions
from serving.click_options import ParsedText, with_options
from serving.file_layout import FileLayout
from serving.front_options import FrontOptions
from serving.idle_options import flags_of, refuse_idle
from serving.options import (
    OutputOptions,
    PackageOptions,
    PredictOptions,
    RequestOptions,
    ServeOptions,
    ServerAddress,
    ServerPort,
    StartOptions,
    StopOptions,
    parse_model_name,
)
from serving.reporting import logger, plural

if TYPE_CHECKING:
    from serving.repository import PackagedEnsemble
    from serving.runtime.tasks.base import ServedTask
    from serving.served_view import ServedView


@click.command("package")
@with_options
def package_command(options: PackageOptions, output: OutputOptions) -> None:
    """Turn a bundle into a Triton model repository, in one atomic step.

    If tritonize tune has found a configuration for this bundle, on a machine with as many cores or the same GPUs, it replaces the
    defaults.
    """
    from serving.repository import package

    options = prepare_package(options)
    packaged = package(options)
    if output.json:
        click.echo(json.dumps(packaged.manifest.model_dump(mode="json"), ensure_ascii=False))
        return
    click.echo(report_package(options, packaged))


def prepare_package(options: PackageOptions) -> PackageOptions:
    """Choose a name, and refuse options that have no effect. The context of a Click command tells which options were given."""
    from serving.generation_plan import IDLE as GENERATION_IDLE
    from serving.naming import named_for_packaging, recipe_name
    from serving.repository import generates, plan_package
    from serving.vllm_options import VllmOptions
    from serving.vllm_plan import IDLE as VLLM_IDLE

    options = named_for_packaging(options, recipe_name(click.get_current_context()))
    if options.engine == "vllm":
        idle = [f"--{name.replace('_', '-')}" for name in VLLM_IDLE]
        refuse_idle(idle, "with --engine vllm: vLLM schedules all requests itself")
        return options
    refuse_idle(flags_of(VllmOptions), "without --engine vllm")
    if generates(options):
        idle = [f"--{name.replace('_', '-')}" for name in GENERATION_IDLE]
        refuse_idle(idle, "with a model that generates: one process generates all answers together")
        return options
    refuse_idle(["--capacity"], "with a model that answers in one execution")
    of_steps = [options.preprocess_instances, options.postprocess_instances]
    if options.threads is not None or options.queue_delay_us or any(of_steps):
        plan = plan_package(options)
        if plan.layout == "fused" and any(of_steps):
            refuse_idle(["--preprocess-instances", "--postprocess-instances"], "in the fused layout: all steps run in one process")
        if plan.device == "gpu" and options.threads is not None:
            refuse_idle(["--threads"], "on a GPU: it sets the threads on a CPU")
        if plan.batching == "off" and options.queue_delay_us:
            refuse_idle(["--queue-delay-us"], f"with batching off, where no request waits for others ({plan.precision})")
    return options


def report_package(options: PackageOptions, packaged: PackagedEnsemble) -> str:
    """Report the reasons for what was chosen.

    Returns:
        One line that describes the package.
    """
    from serving.layout import current_generation
    from serving.server_record import running_servers
    from serving.vllm_container import container_command

    manifest = packaged.manifest
    for option, reason in manifest.reasons.items():
        logger.info(f"  {option} {reason}")
    for server in running_servers():
        served = server.generation_of(options.repository, options.name)
        if served is not None and served.name != manifest.generation:
            port = "" if server.http_port == ServerPort.http_port else f" --http-port {server.http_port}"
            logger.info(f"  a server serves an earlier one; promote it with: tritonize promote {options.name}{port}")
    if (current := current_generation(options.repository, options.name)) != manifest.generation:
        logger.info(f"  {manifest.generation} is not current: a server that is started later serves {current} until it is promoted")
    state = "is up to date" if packaged.unchanged else "is packaged"
    if manifest.layout == "vllm":
        logger.info(f"  serve it with: {container_command(options.repository, manifest)}")
    if manifest.capacity is not None:
        return f"{options.repository / options.name} {state}: {manifest.configuration}"
    instances, threads = plural(manifest.instances, "instance"), plural(manifest.threads, "thread")
    shape = f"{manifest.instances} {instances} of {manifest.threads} {threads}"
    kind = f"{manifest.precision} on {manifest.device}, batching {manifest.batching}, layout {manifest.layout}"
    return f"{options.repository / options.name} {state}: {kind}, {shape}"


@click.command("serve")
@with_options
def serve_command(options: ServeOptions, start: StartOptions) -> None:
    """Start Triton and wait until every ensemble answers."""
    refuse_idle_front(options)
    if options.trace is None:
        refuse_idle(["--trace-rate"], "without --trace")
    if start.detach:
        from serving.background import start_detached
        from serving.server_record import log_file

        running = start_detached(options)
        _announce(options, Path(running.served), running.left_out)
        click.echo(f"its log: {log_file(options.http_port)}   stop it with: tritonize stop --http-port {options.http_port}")
        return
    from serving.init_process import leave_first_process

    leave_first_process()  # before anything starts a thread
    from serving.errors import TritonizeError
    from serving.log_format import write_log
    from serving.supervisor import supervise
    from serving.writing import describe

    write_log(options.log_format)

    def announce(view: ServedView) -> None:
        if options.log_format == "text":  # the log says it, too; other lines would not be JSON
            _announce(options, view.folder, view.left_out)

    try:
        supervise(options, on_ready=announce)
    except (TritonizeError, OSError) as error:
        if options.log_format == "text":
            raise
        logger.error(error.message_with_hint if isinstance(error, TritonizeError) else describe(error))
        click.get_current_context().exit(1)


def refuse_idle_front(options: ServeOptions) -> None:
    """Refuse options of the proxy if there is none: who asks for API keys or TLS must not get a server without them."""
    if options.front == "none":
        secured = ["--api-key-file", "--api-keys", "--tls-certificate", "--tls-key", "--tls-client-ca"]
        refuse_idle(secured, "with --front none", in_recipes=True)
        refuse_idle([flag for flag in flags_of(FrontOptions) if flag != "--front"], "with --front none")


@click.command("stop")
@with_options
def stop_command(options: StopOptions) -> None:
    """Drain and stop a server that tritonize serve has started."""
    from serving.background import stop
    from serving.server_record import find_running, log_file

    if options.only_repository is not None:
        found = find_running(options.http_port)
        if found is None or Path(found.repository).resolve() != options.only_repository.resolve():
            click.echo(f"no server at HTTP port {options.http_port} was started with {options.only_repository}")
            return
    running = stop(options.http_port)
    log = log_file(options.http_port)
    kept = f"   its log: {log}" if log.exists() else ""
    click.echo(f"stopped the server at HTTP port {options.http_port} (process {running.pid}){kept}")


@click.command("predict")
@click.argument("name", type=ParsedText(parse_model_name))
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@with_options
def predict_command(
    name: str, texts: tuple[str, ...], options: PredictOptions, requests: RequestOptions, output: OutputOptions
) -> None:
    """Ask a running server: TEXTs from the command line, lines from standard input, or rows from a file.

    For an ensemble that takes pairs, give each pair as JSON: '{"text": "…", "text_pair": "…"}', with the keys of its task. Of
    models that generate text, the new text is printed.
    """
    check_access(requests)
    if (options.input is None) != (options.output is None):
        raise click.UsageError("--input and --output go together")
    if options.input is not None and texts:
        raise click.UsageError("give texts or --input, not both")
    if options.input is None:
        refuse_idle(["--text-column", "--text-pair-column", "--choice-column", *flags_of(FileLayout)], "without --input")
    else:
        refuse_idle(["--json", "--stream"], "with --output, whose lines are JSON")
        refuse_idle(["--chat"], "with --input")
    if options.stream and (output.json or len(texts) != 1):
        raise click.UsageError("--stream prints the text of one TEXT, without --json")
    if options.input is None or options.output is None:
        _predict_lines(name, texts, options, requests, as_json=output.json)
    else:
        _predict_file(name, options.input, options.output, options, requests)


def check_access(access: AccessOptions) -> None:
    """Refuse files of API keys and TLS that cannot be used, before anything is asked.

    Raises:
        click.UsageError: One cannot be used.
        SetupError: The file of the API key cannot be used.
    """
    from serving.access import ClientAccess

    try:
        ClientAccess(ssl=access.ssl, ca=access.ca, certificate=access.certificate, key=access.key, api_key_file=access.api_key_file)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


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
    base_url = options.base_url if options.tls_certificate is None else options.base_url.replace("http:", "https:", 1)
    click.echo(f"  HTTP {base_url}   gRPC {options.grpc_url}   metrics {options.metrics_url}   health {options.health_url}/readyz")
    key = "" if options.api_key_file is None else ' -H "x-api-key: $TRITONIZE_API_KEY"'
    click.echo(f"  {probes[0].curl(base_url)}{key}")


def _predict_lines(name: str, texts: tuple[str, ...], options: PredictOptions, requests: RequestOptions, *, as_json: bool) -> None:
    import sys

    from serving import predict_text
    from serving.client import TritonPipeline
    from serving.input_rows import Chat, PipelineRow, argument_lines, check_row, input_lines, line_rows
    from serving.truncated_rows import TruncatedRows

    def rows() -> Iterator[str | PipelineRow | Chat]:
        for row in predict_text.chats(lines) if options.chat else line_rows(lines, keys=task.row_keys):
            check_row(task, row)
            yield row

    lines = argument_lines(texts) if texts else input_lines()
    with TritonPipeline(name, **asdict(requests)) as pipe:
        task = pipe.served_task
        predict_text.require_text_generation(
            task, name, [flag for flag, given in (("--chat", options.chat), ("--stream", options.stream)) if given]
        )
        if not options.chat and predict_text.takes_chats(task):
            logger.info(f"{name} has a chat template: give --chat to send the text as a message")
        chosen = _call_options(task, options)
        in_pieces = len(texts) == 1 and not as_json and sys.stdout.isatty() and predict_text.comes_in_pieces(task, chosen)
        if options.stream or in_pieces:
            predict_text.print_pieces(pipe, next(rows()), chosen)
            return
        answered = TruncatedRows()
        for answer, truncated in pipe.stream_marked(rows(), **(chosen if as_json else predict_text.text_options(task, chosen))):
            answered.add(truncated=truncated)
            _print_answer(answer, as_json=as_json, truncated=truncated)
        answered.warn(pipe.tokenizer.model_max_length)


def _print_answer(answer: object, *, as_json: bool, truncated: bool) -> None:
    from serving.predict_text import generated_texts

    if not as_json and isinstance(answer, dict) and set(answer) == {"label", "score"}:
        click.echo(f"{answer['label']}\t{answer['score']:.4f}")
    elif not as_json and (texts := generated_texts(answer)) is not None:
        for text in texts:
            click.echo(text)
    else:
        shown = answer | {"truncated": True} if as_json and truncated and isinstance(answer, dict) else answer
        click.echo(json.dumps(shown, ensure_ascii=False))


def _call_options(task: ServedTask, options: PredictOptions) -> dict[str, object]:
    from serving.call_options import parse_call_options

    try:
        return parse_call_options(task, options.option)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--option") from None


def _predict_file(name: str, path: Path, output: Path, options: PredictOptions, requests: RequestOptions) -> None:
    import asyncio

    from serving.answer_file import AnswerFile
    from serving.async_client import AsyncTritonPipeline
    from serving.input_rows import InputFile, named_columns
    from serving.predict import PredictFile, predict_file
    from serving.predict_progress import RowProgress

    async def run() -> tuple[int, int]:
        async with AsyncTritonPipeline(name, **asdict(requests)) as pipe:
            task = await pipe.connect()
            columns = named_columns(name, task, options.text_column, options.text_pair_column, options.choice_column)
            chosen = _call_options(task, options)
            rows = InputFile(path=path, columns=columns, layout=options.layout, words=task.reads_words)
            answers = AnswerFile(path=output, source={**await pipe.identity(), "options": chosen})
            done, answered = await predict_file(pipe, PredictFile(input=rows, output=answers, options=chosen), progress)
            answered.warn((await pipe.attributes()).tokenizer.model_max_length)
            return done, answered.rows

    with RowProgress() as progress:
        try:
            done, answered = asyncio.run(run())
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{progress.counts} are answered; run the same command to continue") from None
    before = f", {done:,} {plural(done, 'was', 'were')} there already" if done else ""
    logger.info(f"{output}: {answered:,} {plural(answered, 'row')} answered{before}")
