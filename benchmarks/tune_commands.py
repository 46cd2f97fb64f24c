"""The ``tune`` command: options → :func:`benchmarks.tuning.stage.tune`, and its winner → repository and recipe."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks.options import choices, chosen_name, counts, exported_model
from export.recipe import recipe_file
from serving.options import PRECISIONS, parse_model_name

Say = Callable[[str], None]
Begin = Callable[[int, int, str], None]
SERVES = "serves it so"


@click.command("tune")
@exported_model
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("model_repository"),
    help="Folder of Triton models, into which the best is packaged.",
)
@click.option(
    "--latency-p99-ms",
    type=click.FloatRange(min=0, min_open=True),
    help="Milliseconds within which 99 of 100 requests must be answered.  [default: any; throughput alone counts]",
)
@click.option(
    "--precision",
    multiple=True,
    callback=choices(PRECISIONS),
    help="Variants that may be served.  [default: all of the bundle, on a GPU without int8]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", help="Where the model runs.")
@click.option(
    "--concurrency",
    multiple=True,
    default=("1", "4", "16"),
    callback=counts(),
    metavar="N[,N…]",
    help="Requests kept in flight: the loads that are measured.",
)
@click.option("--rows", type=click.IntRange(min=1), default=256, help="Texts that are asked, of those the bundle was verified on.")
@click.option(
    "--duration",
    type=click.FloatRange(min=0, min_open=True),
    default=4.0,
    help="Seconds that each load is measured in each trial, after half as much of warm-up.",
)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=15.0, help="How long all trials may take.")
@click.option("--fresh", is_flag=True, help="Make every trial anew, whatever was measured before.")
@click.option("--seed", type=int, default=0, help="Draws the texts.")
@click.option("--dry-run", is_flag=True, help="Print what would be tried first, and try nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of words.")
@click.pass_context
def tune_command(
    ctx: click.Context, /, *, model: str | None, name: str | None, repository: Path, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Find out how a model is best served on this machine, by trying it on a real server with real texts.

    Tries a coarse grid of precision, instances, threads, batching, batch size and queue delay, then what lies near the best,
    then the best and the untuned default again by turns. The winner has the highest throughput within --latency-p99-ms; it
    must beat the default by more than the rounds differ. It is packaged, written into the recipe beside your own choices, and
    taken by every later tritonize package of this bundle. A search that was interrupted goes on where it was.
    """

    chosen = chosen_name(ctx, model, name)
    try:
        parse_model_name(chosen)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--name") from None
    from benchmarks.tuning.stage import TuneOptions, tune
    from benchmarks.tuning.summary import require_winner, summary, table, to_json
    from serving.repository import refuse_foreign

    artifacts, bundle, concurrencies = options.pop("artifacts"), options.pop("bundle"), options.pop("concurrency")
    typed = TuneOptions(
        bundle=bundle or artifacts / chosen / "bundle",
        precisions=options.pop("precision"),
        concurrencies=concurrencies,
        **options,
    )
    if dry_run:
        _print_grid(typed, as_json=as_json)
        return
    refuse_foreign(repository, chosen)  # now rather than after a quarter of an hour
    _require_writable(recipe_file(ctx))
    with _progress() as (say, begin):
        tuned = tune(typed, say, begin)
    if tuned.unchanged:
        again = ", also what could not be served" if tuned.outcome.failures else ""
        click.echo(f"nothing has changed since this was found; --fresh measures again{again}", err=True)
    click.echo("\n".join(table(tuned.outcome)), err=as_json)
    for line in summary(tuned.outcome):
        click.echo(line, err=True)
    winner = require_winner(tuned.outcome)
    recipe = _apply(ctx, chosen, typed.bundle, repository, winner.configuration)
    if as_json:
        click.echo(json.dumps(to_json(tuned.outcome) | {"recipe": str(recipe)}, ensure_ascii=False))


def _print_grid(options: Any, *, as_json: bool) -> None:
    from dataclasses import asdict

    from benchmarks.tuning.stage import prepare

    subject = prepare(options)
    if as_json:
        click.echo(json.dumps([asdict(configuration) for configuration in subject.search.first]))
        return
    for configuration in subject.search.first:
        click.echo(f"{configuration}{'  ← untuned' if configuration == subject.default else ''}")
    total = len(subject.search.space.configurations())
    click.echo(
        f"then others of {total} in all, and in the end the best three and the untuned default in interleaved rounds", err=True
    )


def _apply(ctx: click.Context, name: str, bundle: Path, repository: Path, winner: Any) -> Path:
    """Package the winner and write it into the recipe: the user's own, else one beside the bundle. Returns its file."""
    from export.recipe import write_options
    from serving.machine import resolve_device
    from serving.options import PackageOptions
    from serving.repository import package

    packaged = package(PackageOptions(bundle=bundle, repository=repository, name=name, device=winner.device))
    state = "is up to date" if packaged.unchanged else "is packaged; a server that runs takes it up when it is restarted"
    click.echo(f"{repository / name} {state}", err=True)
    device = "" if winner.device == resolve_device("auto") else f" --device {winner.device}"
    own = recipe_file(ctx)
    if own is not None:
        outcome = _write(own, bundle)
        click.echo(f"{own}: [package] {outcome}{device and f', with{device}'}", err=True)
        return own
    recipe = bundle.parent / "tuned.toml"
    usual = {"bundle": Path("artifacts") / name / "bundle", "repository": Path("model_repository")}
    places = {key: str(path) for key, path in {"bundle": bundle, "repository": repository}.items() if path != usual[key]}
    write_options(recipe, {"name": name}, "package", places)
    outcome = _write(recipe, bundle)
    same = "the same as a recipe" if outcome == SERVES else f"as a recipe, whose [package] {outcome}"
    click.echo(f"{same}: tritonize package --recipe {recipe}{device}", err=True)
    return recipe


def _require_writable(recipe: Path | None) -> None:
    """Raises:
    ArtifactError: there is no adding to the user's own recipe.
    """
    from benchmarks.tuning.applied import with_winner

    if recipe is not None:
        with_winner(_read(recipe), "", {})


def _write(recipe: Path, bundle: Path) -> str:
    """Write the winner into a recipe, but for what the user has pinned there. Returns what the recipe does then."""
    from benchmarks.tuning.applied import TOGETHER, pins, recipe_values, remark, with_winner
    from export.recipe import write_recipe
    from serving.tuning import read_tuning

    tuning, content = read_tuning(bundle), _read(recipe)
    assert tuning is not None
    values = recipe_values(tuning.winner)
    write_recipe(recipe, with_winner(content, remark(tuning), values))
    kept = pins(content, values)
    for name in kept:
        with_it = f", and no {''.join(TOGETHER - {name})} written" if TOGETHER & set(kept) == {name} else ""
        click.echo(f"your recipe pins {name}: kept{with_it}", err=True)
    if "precision" in kept:
        return "stays without a winner: nothing else was measured for that precision"
    return f"{SERVES}, but for that" if kept else SERVES


def _read(recipe: Path) -> str:
    return recipe.read_bytes().decode()  # with its own line ends


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Say, Begin]]:
    """A bar on a terminal; in a log the lines alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda line: click.echo(line, err=True), lambda _number, _about, _what: None
        return
    columns = (MofNCompleteColumn(), BarColumn(bar_width=20), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def say(line: str) -> None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        def begin(number: int, about: int, what: str) -> None:
            bar.update(task, description=what, completed=number - 1, total=about)

        yield say, begin
