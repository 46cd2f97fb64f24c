"""Recipes: TOML files that hold options of commands. They become Click's defaults, so Click validates them and flags win."""

from __future__ import annotations

import shutil
import tempfile
import tomllib
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import cast

import click

from serving.click_options import RECIPE, RECIPE_STEM, FieldOption
from serving.option_values import as_defaults, parameters
from serving.reporting import logger
from serving.runtime.suggestions import suggestion
from serving.writing import writing

RECIPES = Path(__file__).parent / "recipes"


def builtin_recipes() -> list[str]:
    """List the recipes that are part of tritonize.

    Returns:
        Their names in alphabetical order.
    """
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(recipe: str) -> dict[str, object]:
    """Read a recipe.

    Args:
        recipe: Name of a built-in recipe, or path of a file.

    Returns:
        Its content: options, and sections with options.

    Raises:
        click.UsageError: There is no such recipe, or it is not valid TOML.
    """
    path = RECIPES / f"{recipe}.toml" if recipe in builtin_recipes() else Path(recipe)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise click.UsageError(f"no recipe {recipe!r}: give a TOML file or one of {', '.join(builtin_recipes())}") from None
    except (ValueError, RecursionError, OSError) as error:  # a number of too many digits is no TOMLDecodeError
        raise click.UsageError(f"recipe {path}: {error}") from None


def recipe_file(ctx: click.Context) -> Path | None:
    """Find the user's own recipe.

    Args:
        ctx: Context of a command.

    Returns:
        The file; None if the command got no recipe or a built-in one.
    """
    recipe = ctx.meta.get(RECIPE)
    return None if recipe is None or recipe in builtin_recipes() else Path(recipe)


def write_options(path: Path, shared: Mapping[str, object], section: str, options: Mapping[str, object]) -> None:
    """Set options in a recipe. All other content, comments included, stays as it is.

    Args:
        path: The recipe; it is created if it does not exist.
        shared: Options outside any section.
        section: Name of a section.
        options: Options in that section, by name with dashes. An existing option with underscores keeps them.

    Raises:
        OSError: The file cannot be written. Its content is unchanged.
    """
    import tomlkit

    path = path.resolve()
    document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
    document.update(shared)
    if section not in document:
        document.add(section, tomlkit.table())
    table = cast(MutableMapping[str, object], document[section])
    for name, value in options.items():
        underscored = name.replace("-", "_")
        table[underscored if underscored in table else name] = value
    write_recipe(path, tomlkit.dumps(document))


def write_recipe(path: Path, content: str) -> None:
    """Write or replace a recipe atomically.

    Args:
        path: The file.
        content: Its new content.

    Raises:
        OSError: The file cannot be written. Its content is unchanged.
    """
    path = path.resolve()
    with writing(path), tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written = Path(folder) / path.name
        written.write_bytes(content.encode())
        if path.exists():
            shutil.copymode(path, written)
        written.replace(path)


def apply_recipe(ctx: click.Context, _: click.Parameter, recipe: str | None) -> None:
    """Set the defaults of a command from a recipe: the callback of the eager option ``--recipe``.

    Args:
        ctx: Context of the command.
        recipe: Name or path of the recipe; None: no recipe.

    Raises:
        click.UsageError: The recipe cannot be read, or holds sections or options that do not exist.
    """
    if recipe is None:
        return
    ctx.meta[RECIPE] = recipe
    if (own := recipe_file(ctx)) is not None:
        ctx.meta[RECIPE_STEM] = own.stem
    content = read_recipe(recipe)
    sections = {key: value for key, value in content.items() if isinstance(value, dict)}
    outside = {key.replace("-", "_"): value for key, value in content.items() if key not in sections}
    section = {key.replace("-", "_"): value for key, value in sections.get(ctx.info_name or "", {}).items()}
    section = _renamed(ctx, recipe, section)
    _refuse_unknown(ctx, recipe, set(sections), set(outside), set(section))
    known = parameters(ctx.command)
    chosen = {key: value for key, value in outside.items() if key in known} | section
    ctx.default_map = as_defaults(ctx.command, chosen, where=f"recipe {recipe}: ") | dict(ctx.default_map or {})


def shared_options(group: click.Group) -> set[str]:
    """List the options that are allowed outside the sections of a recipe. Every command takes those that it has.

    Args:
        group: The group of all commands, which are imported.

    Returns:
        Their names, with underscores.
    """
    ctx = click.Context(group)
    return {name for command in group.list_commands(ctx) for name in _shared(group.get_command(ctx, command))}


def _refuse_unknown(ctx: click.Context, recipe: str, sections: set[str], outside: set[str], section: set[str]) -> None:
    assert ctx.parent is not None and isinstance(ctx.parent.command, click.Group)
    group = ctx.parent.command
    if unknown := sections - set(group.list_commands(ctx)):
        raise click.UsageError(f"recipe {recipe}: no command is called {', '.join(sorted(unknown))}")
    if outside - _shared(ctx.command) and (misplaced := outside - shared_options(group)):  # the latter imports all commands
        allowed = ", ".join(sorted(shared_options(group)))
        raise click.UsageError(
            f"recipe {recipe}: {', '.join(sorted(misplaced))} cannot be set outside a section; only {allowed} can"
        )
    if unknown := section - set(parameters(ctx.command)):
        names = ", ".join(name.replace("_", "-") for name in sorted(unknown))
        meant = suggestion(sorted(unknown)[0], parameters(ctx.command)).replace("_", "-")
        raise click.UsageError(f"recipe {recipe}, [{ctx.info_name}]: no option is called {names}{meant}")


def _renamed(ctx: click.Context, recipe: str, section: Mapping[str, object]) -> dict[str, object]:
    """Replace former keys by today's, with a warning. A value under today's key wins."""
    found = dict(section)
    for option in _field_options(ctx.command):
        for key in option.source.option.former_keys:
            if key in found:
                logger.warning(f"recipe {recipe}, [{ctx.info_name}]: {key} is now {option.name}; the old name will be removed")
                found = {option.name or "": found.pop(key)} | found
    return found


def _field_options(command: click.Command) -> list[FieldOption]:
    return [parameter for parameter in command.params if isinstance(parameter, FieldOption)]


def _shared(command: click.Command | None) -> set[str]:
    """Return the names of the options that are allowed outside a section."""
    options = _field_options(command) if command is not None else []
    return {option.name for option in options if option.source.option.shared and option.name is not None}
