"""The commands ``models`` and ``remove``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from serving.click_options import ParsedText, with_options
from serving.idle_options import refuse_idle
from serving.models_options import ModelsOptions, RemoveOptions
from serving.options import OutputOptions, parse_model_name

if TYPE_CHECKING:
    from serving.inventory import InventoryEntry

COLUMNS = ("name", "state", "task", "precision", "device", "packaged", "MB", "ports", "notes")
"""Columns of the list in a log or pipe; on a terminal precision and device share one, and notes stand below."""


@click.command("models")
@with_options
def models_command(options: ModelsOptions, output: OutputOptions) -> None:
    """List the packaged models of a repository: what they are, which servers serve them, and what is out of date.

    A model is out of date if its bundle was exported again after it was packaged, or its checkpoint was trained again after the
    export; a server, if it serves an earlier package. Only servers of this user are known. Of files of more than 8 MiB, such as
    weights, only the existence is checked.
    """
    from serving.inventory import take_inventory
    from serving.server_record import running_servers

    entries = take_inventory(options.repository, options.artifacts, running_servers())
    if output.json:
        content = [asdict(entry) for entry in entries]
        click.echo(json.dumps(content, default=lambda moment: moment.isoformat(), ensure_ascii=False, indent=2))
    elif not entries:
        click.echo(f"{options.repository} holds no packaged model (make one with: tritonize package)")
    elif sys.stdout.isatty():
        _print_table(entries)
    else:
        for row in ("\t".join(COLUMNS), *("\t".join(_cells(entry)) for entry in entries)):
            click.echo(row)


@click.command("remove")
@click.argument("name", type=ParsedText(parse_model_name))
@click.argument("generation", required=False)
@with_options
def remove_command(name: str, generation: str | None, options: RemoveOptions) -> None:
    """Remove the packaged model NAME, or what is left of one, from the repository. Models of other tools stay.

    A model that a running server serves is not removed: the server could not restart with it. With a GENERATION, only that one is
    removed. The current one stays, and one that a server uses.
    """
    from serving.packages import find_packages
    from serving.removal import remove_artifacts, remove_model, remove_one_generation
    from serving.server_record import running_servers

    if generation is not None:
        refuse_idle(["--with-artifacts", "--force"], "with a GENERATION")
        remove_one_generation(options.repository, name, generation)
        click.echo(f"removed {generation} of {name}")
        return
    removed = []
    has_artifacts = options.with_artifacts and (options.artifacts / name).exists()
    known = find_packages(options.repository, files=False)
    if name in known.names or not has_artifacts:
        removed += remove_model(options.repository, name, servers=running_servers(), force=options.force)
    if options.with_artifacts:
        removed += remove_artifacts(options.artifacts, name)
    click.echo(f"removed {', '.join(map(str, removed)) or 'nothing'}")


def _cells(entry: InventoryEntry) -> tuple[str, ...]:
    packaged = "" if entry.packaged is None else f"{entry.packaged.astimezone():%Y-%m-%d %H:%M}"
    ports = ", ".join(map(str, entry.ports))
    kind = (entry.task or "", entry.precision or "", entry.device or "")
    return (entry.name, entry.state, *kind, packaged, f"{entry.bytes / 1e6:.1f}", ports, "; ".join(entry.notes))


def _print_table(entries: Sequence[InventoryEntry]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("name", box=None, pad_edge=False, padding=(0, 2, 0, 0), collapse_padding=True)
    for column in ("state", "task", "served as", "packaged", "MB", "ports"):
        table.add_column(column, no_wrap=True)
    console = Console()
    for entry in entries:
        color = {"ready": "green", "damaged": "red", "orphan": "yellow"}[entry.state]
        name, state, task, precision, device, *others = map(escape, _cells(entry)[:-1])
        kind = f"{precision} on {device}" if precision else ""
        table.add_row(f"[bold]{name}[/]", f"[{color}]{state}[/]", task, kind, *others)
    console.print(table)
    for entry in entries:
        for note in entry.notes:
            console.print(f"{entry.name}: {note}", markup=False, highlight=False, soft_wrap=True)
