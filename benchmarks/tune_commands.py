"""The ``tune`` command: runs :func:`benchmarks.tuning.stage.tune` and applies the winner to repository and recipe."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from benchmarks.options import with_model_name
from benchmarks.tuning.tune_options import DryRunOptions, TuneOptions
from export.recipe import recipe_file
from serving.click_options import with_options
from serving.idle_options import refuse_idle
from serving.options import OutputOptions, PackageOptions
from serving.reporting import console, logger

if TYPE_CHECKING:
    from serving.configuration import Configuration

Begin = Callable[[int, int, str], None]
SERVES = "serves it in this configuration"


@click.command("tune")
@click.argument("model", metavar="NAME", required=False)
@with_options
@click.pass_context
def tune_command(
    ctx: click.Context, /, *, model: str | None, options: TuneOptions, dry: DryRunOptions, output: OutputOptions
) -> None:
    """Find the best configuration to serve a model on this machine, by trials on a real server with real texts.

    Measures a coarse grid of precision, instances, threads and batching, then further configurations that Optuna chooses, with
    other batch sizes and queue delays, as long as --minutes allow; then the best three and the untuned default again in
    interleaved rounds. Of a model that generates, precision, threads and slots are searched. The winner has the highest throughput
    within --latency-p99-ms, and is better than the default beyond measurement noise. It is packaged, written into the recipe next
    to your own choices, and used by every later tritonize package of this bundle. If a run is interrupted, the same command
    resumes it.
    """
    options = with_model_name(ctx, model, options)
    if dry.dry_run:
        refuse_idle(["--fresh", "--minutes"], "with --dry-run")
    _explain_kind(options)
    if dry.dry_run:
        _print_grid(options, as_json=output.json)
        return
    from benchmarks.tuning.applied import with_winner
    from benchmarks.tuning.stage import tune
    from benchmarks.tuning.summary import require_winner, summary, table, to_json
    from serving.bundle import load_bundle
    from serving.lineage import refuse_other_package
    from serving.placement import refuse_foreign

    bundle = load_bundle(options.bundle_folder)
    refuse_foreign(options.repository, options.name)  # now rather than after a quarter of an hour
    places = PackageOptions(name=options.name, bundle=options.bundle_folder, repository=options.repository)
    refuse_other_package(places, bundle)
    if (own := recipe_file(ctx)) is not None:
        with_winner(_read(own), "", {})  # an error now if a winner cannot be written into it
    with _progress() as begin:
        tuned = tune(options, begin)
    if tuned.unchanged:
        again = ", also what could not be served" if tuned.outcome.failures else ""
        logger.info(f"nothing has changed since this was measured; --fresh measures again{again}")
    for line in table(tuned.outcome):
        if output.json:
            logger.info(line)
        else:
            click.echo(line)
    for line in summary(tuned.outcome):
        logger.info(line)
    winner = require_winner(tuned.outcome)
    recipe = _apply(options, winner.configuration, own)
    if output.json:
        click.echo(json.dumps(to_json(tuned.outcome) | {"recipe": str(recipe)}, ensure_ascii=False))


def _explain_kind(options: TuneOptions) -> None:
    """Refuse an option that has no effect for the kind of the model, and say which settings have no meaning for it."""
    from serving.bundle import load_bundle
    from serving.generation_plan import IDLE
    from serving.runtime.tasks._generation import GenerationTask

    if not isinstance(load_bundle(options.bundle_folder).task, GenerationTask):
        refuse_idle(["--new-tokens"], "for a model that answers in one execution")
        return
    idle = ", ".join(name.replace("_", " ") for name in IDLE)
    logger.info(f"precision, threads and slots (--max-batch-size) are searched; a model that generates has no {idle}")


def _print_grid(options: TuneOptions, *, as_json: bool) -> None:
    from benchmarks.tuning.stage import prepare

    subject = prepare(options)
    if as_json:
        click.echo(json.dumps([asdict(configuration) for configuration in subject.search.first]))
        return
    for configuration in subject.search.first:
        click.echo(f"{configuration}{'  ← untuned' if configuration == subject.default else ''}")
    total = len(subject.search.space.configurations())
    logger.info(f"then others, {total} in all, and at last the best three and the untuned default in interleaved rounds")


def _apply(options: TuneOptions, winner: Configuration, own: Path | None) -> Path:
    """Package the winner and write it into the user's own recipe or one beside the bundle. Return the path of the recipe."""
    from benchmarks.tuning.packaged_sizes import packaged_sizes
    from export.recipe import write_options
    from serving.machine import resolve_device
    from serving.repository import package

    name, bundle, repository = options.name, options.bundle_folder, options.repository
    device: Literal["cpu", "gpu"] = "gpu" if winner.device == "gpu" else "cpu"
    length, capacity = packaged_sizes(options)
    packaged = package(
        PackageOptions(bundle=bundle, repository=repository, name=name, device=device, max_length=length, capacity=capacity)
    )
    state = "is up to date" if packaged.unchanged else f"is packaged; bring it into a running server with: tritonize promote {name}"
    logger.info(f"{repository / name} {state}")
    flag = "" if packaged.manifest.capacity is not None or winner.device == resolve_device("auto") else f" --device {winner.device}"
    if own is not None:
        effect = _write(own, bundle)
        logger.info(f"{own}: [package] {effect}{flag and f', with{flag}'}")
        return own
    recipe = bundle.parent / "tuned.toml"
    usual = {"bundle": PackageOptions(name=name).bundle_folder, "repository": PackageOptions.repository}
    places = {key: str(path) for key, path in {"bundle": bundle, "repository": repository}.items() if path != usual[key]}
    write_options(recipe, {"name": name}, "package", places)
    effect = _write(recipe, bundle)
    same = "the same as a recipe" if effect == SERVES else f"as a recipe, whose [package] {effect}"
    logger.info(f"{same}: tritonize package --recipe {recipe}{flag}")
    return recipe


def _write(recipe: Path, bundle: Path) -> str:
    """Write the winner into a recipe, except for what the user has pinned there. Return what the recipe does then."""
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
        logger.info(f"your recipe pins {name}: kept{with_it}")
    if "precision" in kept:
        return "stays without a winner: nothing else was measured for that precision"
    return f"{SERVES}, except for that" if kept else SERVES


def _read(recipe: Path) -> str:
    return recipe.read_bytes().decode()  # keeps the line ends


@contextlib.contextmanager
def _progress() -> Iterator[Begin]:
    """Show a progress bar on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (MofNCompleteColumn(), BarColumn(bar_width=20), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console(), transient=True, disable=not console().is_terminal) as bar:
        task = bar.add_task("", total=None)

        def begin(number: int, about: int, what: str) -> None:
            bar.update(task, description=what, completed=number - 1, total=about)

        yield begin
