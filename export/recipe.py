"""Recipes: TOML files that hold a command's options. They become click's own defaults, so click validates them and flags win."""

from __future__ import annotations

import shutil
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

RECIPE = "tritonize.recipe"
"""Where a context remembers the recipe it was given."""
RECIPES = Path(__file__).parent / "recipes"
SHARED = {"name", "task", "artifacts", "bundle", "repository", "precision", "device", "seed"}
"""Options that may stand at the top of a recipe, before any section: each command takes those it has."""


def recipe_option() -> click.Option:
    """``--recipe``: eager, so that it sets the defaults before any other option is read."""
    return click.Option(
        ["--recipe"],
        metavar="NAME|FILE",
        is_eager=True,
        expose_value=False,
        callback=_apply,
        help=f"Read options from a TOML recipe: a file, or one of those that come along ({', '.join(builtin_recipes())}).",
    )


def builtin_recipes() -> list[str]:
    """Names of the recipes that come along."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(recipe: str) -> dict[str, Any]:
    """Parse a recipe.

    Raises:
        click.UsageError: no such recipe, or not TOML.
    """
    path = RECIPES / f"{recipe}.toml" if recipe in builtin_recipes() else Path(recipe)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise click.UsageError(f"no recipe {recipe!r}: give a TOML file or one of {', '.join(builtin_recipes())}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise click.UsageError(f"recipe {path}: {error}") from None


def recipe_file(ctx: click.Context) -> Path | None:
    """The user's own recipe that a command was given; None where it was given none, or one of those that come along."""
    recipe = ctx.meta.get(RECIPE)
    return None if recipe is None or recipe in builtin_recipes() else Path(recipe)


def write_options(path: Path, shared: Mapping[str, Any], section: str, options: Mapping[str, Any]) -> None:
    """Set options in a recipe, which is made where there is none. All else in it stays as it is, comments too.

    Args:
        shared: outside any section.
        options: in ``section``, by name with dashes; one that stands there with underscores keeps them.

    Raises:
        OSError: it cannot be written; it is as it was.
    """
    import tomlkit

    path = path.resolve()
    document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
    document.update(shared)
    if section not in document:
        document.add(section, tomlkit.table())
    table: Any = document[section]
    for name, value in options.items():
        underscored = name.replace("-", "_")
        table[underscored if underscored in table else name] = value
    write_recipe(path, tomlkit.dumps(document))


def write_recipe(path: Path, content: str) -> None:
    """Replace a recipe, or make it, in one step.

    Raises:
        OSError: it cannot be written; it is as it was.
    """
    path = path.resolve()
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written = Path(folder) / path.name
        written.write_bytes(content.encode())
        if path.exists():
            shutil.copymode(path, written)
        written.replace(path)


def _apply(ctx: click.Context, _: click.Parameter, recipe: str | None) -> None:
    if recipe is None:
        return
    ctx.meta[RECIPE] = recipe
    content = read_recipe(recipe)
    assert ctx.parent is not None and isinstance(ctx.parent.command, click.Group)
    group = ctx.parent.command
    sections = {key: value for key, value in content.items() if isinstance(value, dict)}
    shared = {key: value for key, value in content.items() if not isinstance(value, dict)}
    unknown = set(sections) - set(group.list_commands(ctx))
    if unknown:
        raise click.UsageError(f"recipe {recipe}: no command is called {', '.join(sorted(unknown))}")
    misplaced = {key.replace("-", "_") for key in shared} - SHARED
    if misplaced:
        raise click.UsageError(
            f"recipe {recipe}: {', '.join(sorted(misplaced))} may not stand outside a section; only {', '.join(sorted(SHARED))} may"
        )
    known = {parameter.name for parameter in ctx.command.params}
    section = {key.replace("-", "_"): value for key, value in sections.get(ctx.command.name or "", {}).items()}
    strange = set(section) - known
    if strange:
        raise click.UsageError(f"recipe {recipe}, [{ctx.command.name}]: no option is called {', '.join(sorted(strange))}")
    defaults = {key.replace("-", "_"): value for key, value in shared.items()}
    repeatable = {parameter.name for parameter in ctx.command.params if getattr(parameter, "multiple", False)}
    chosen = {key: value for key, value in defaults.items() if key in known} | section
    # One value of an option that may be given several times need not be written as a list.
    ctx.default_map = {
        key: [value] if key in repeatable and not isinstance(value, list) else value for key, value in chosen.items()
    }
