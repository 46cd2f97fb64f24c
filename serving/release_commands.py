"""The commands ``promote``, ``rollback``, ``load``, ``unload`` and ``status``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from serving.access_options import AccessOptions
from serving.click_options import ParsedText, with_options
from serving.commands import check_access
from serving.idle_options import flags_of, refuse_idle
from serving.model_names import read_model_name
from serving.options import OutputOptions, parse_model_name
from serving.release_options import LoadingOptions, ReleaseOptions
from serving.reporting import logger

if TYPE_CHECKING:
    from serving.release_status import GenerationStatus
    from serving.release_target import ReleaseTarget


def _parse_package_name(text: str) -> str:
    """Read the name of a package.

    Raises:
        ValueError: It is none, or the name of one generation.
    """
    name = parse_model_name(text)
    of = read_model_name(name)
    if of is not None and of.step is None:
        raise ValueError(f"{name} is a generation of {of.package}: write {of.package} {of.generation}")
    return name


NAME = click.argument("name", type=ParsedText(_parse_package_name))
GENERATION = click.argument("generation", required=False)
MOST_FIGURES = 2
"""Figures in a line of ``status``; ``--json`` has all."""


@click.command("promote")
@NAME
@GENERATION
@with_options
def promote_command(name: str, generation: str | None, options: LoadingOptions) -> None:
    """Let a running server answer with a GENERATION of the model NAME, by default the newest one.

    No request is lost and no answer is mixed: the server loads the generation beside the one that answers, checks the answers that
    packaging recorded, and then changes over. A broken generation is refused, and the server answers as before.
    """
    from serving.release_target import release

    steps = _Steps(name)
    chosen = release(_loading_target(options), name, generation, steps)
    steps.finish(f"{name} answers with {chosen}")


@click.command("rollback")
@NAME
@with_options
def rollback_command(name: str, options: LoadingOptions) -> None:
    """Let a running server answer with the generation of the model NAME that answered before the present one.

    The history in the repository tells which that was: generations that were packaged and never promoted are passed over.
    """
    from serving.release_target import previous_generation, release

    target = _loading_target(options)
    steps = _Steps(name)
    chosen = release(target, name, previous_generation(target, name), steps)
    steps.finish(f"{name} answers with {chosen}")


@click.command("load")
@NAME
@GENERATION
@with_options
def load_command(name: str, generation: str | None, options: LoadingOptions) -> None:
    """Load a GENERATION of the model NAME into a running server.

    It answers under its own name, NAME.GENERATION. By default it is the newest one, unless that answers already. If the server does
    not serve NAME, the generation answers as NAME, and is by default the current one of the repository, as after a restart of the
    server.
    """
    from serving.release_target import load

    steps = _Steps(name)
    chosen = load(_loading_target(options), name, generation, steps)
    steps.finish(f"{name} {chosen} is loaded")


@click.command("unload")
@NAME
@GENERATION
@with_options
def unload_command(name: str, generation: str | None, options: ReleaseOptions) -> None:
    """Unload the model NAME from a running server, or only what was loaded as NAME.GENERATION. The repository stays as it is."""
    from serving.release_target import find_target

    _check_access(options)
    find_target(options).unload(name, generation or "")
    click.echo(f"{name}{f' {generation}' if generation else ''} is unloaded")


@click.command("status")
@with_options
def status_command(options: ReleaseOptions, output: OutputOptions) -> None:
    """List the generations of each model: which is current in the repository, and which a running server answers with."""
    from serving.release_status import take_status

    repository, loaded = _loaded(options)
    found = take_status(repository, loaded)
    if output.json:
        click.echo(json.dumps([asdict(one) for one in found], default=lambda moment: moment.isoformat(), indent=2))
    elif not found:
        click.echo(f"{repository} holds no packaged model (make one with: tritonize package)")
    else:
        for row in (("name", "generation", "current", "state", "created", "kind", "figures"), *map(_cells, found)):
            click.echo("\t".join(row))


class _Steps:
    """Reports the steps of a release. What a package answers with is the result, which is printed as soon as it is so."""

    def __init__(self, name: str) -> None:
        self._result = f"{name} answers with "
        self._is_told = False

    def __call__(self, line: str) -> None:
        if line.startswith(self._result):
            click.echo(line)
            self._is_told = True
        else:
            logger.info(line)

    def finish(self, result: str) -> None:
        """Print the result of a command that no step has told."""
        if not self._is_told:
            click.echo(result)


def _loaded(options: ReleaseOptions) -> tuple[Path, Mapping[str, str] | None]:
    """Return the repository that the options are about, and what a server has loaded of it; None if that is not known now."""
    from serving.errors import ServerError
    from serving.release_status import recorded_models
    from serving.release_target import find_target
    from serving.server_record import find_running

    _check_access(options)
    if options.url is not None:
        target = find_target(options)
        return target.repository, target.loaded()
    running = find_running(options.http_port)
    if running is None:
        logger.warning(f"you have no server at HTTP port {options.http_port}: nothing is loaded")
        return options.repository, {}
    repository = Path(running.repository)
    if running.served and not running.control:  # started with --front none
        return repository, recorded_models(repository, running)
    try:
        return repository, find_target(options).loaded()
    except ServerError as error:
        logger.warning(f"what is loaded is not known now: {error.message_with_hint}")
        return repository, None


def _loading_target(options: LoadingOptions) -> ReleaseTarget:
    """Return the server that the options name.

    Raises:
        click.UsageError: A key is given for a server that has its own.
    """
    from serving.release_target import find_target

    _check_access(options)
    if options.verify_key is not None and options.url is None:
        raise click.UsageError("--verify-key goes with --url: a server of tritonize serve verifies with the key of its start")
    return find_target(options, verify_key=options.verify_key)


def _check_access(options: ReleaseOptions) -> None:
    """Refuse an API key and files of TLS without the server that they are for, those that cannot be used, and a second server.

    Raises:
        click.UsageError: One of them was given without ``--url`` or cannot be used, or a port was given with ``--url``.
        SetupError: The file of the API key cannot be used.
    """
    if options.url is None:
        reason = "without --url: a server of tritonize serve is asked through a socket that only its user can open"
        refuse_idle(flags_of(AccessOptions), reason)
    else:
        refuse_idle(["--http-port"], "with --url, which names the server")
        check_access(options.access)


def _cells(one: GenerationStatus) -> tuple[str, ...]:
    created = "" if one.created is None else f"{one.created.astimezone():%Y-%m-%d %H:%M}"
    told = [f"{name} {value:.4f}" for name, value in one.figures.items() if value is not None]
    figures = ", ".join(told[:MOST_FIGURES])
    return (one.name, one.generation, "yes" if one.is_current else "", one.state, created, one.kind, figures or one.problem)
