"""The README's commands exist, with the options it names."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from export.cli import COMMANDS, tritonize
from export.recipe import shared_options

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
CONSOLE = [line.removeprefix("$ ") for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
           for line in block.splitlines() if line.startswith("$ ")]  # fmt: skip
TARGETS = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("line", [line for line in CONSOLE if line.startswith("make ")])
def test_make_lines(line: str) -> None:
    words = [word for word in shlex.split(line)[1:] if "=" not in word]
    assert words and set(words) <= TARGETS


@pytest.mark.parametrize("line", [line for line in CONSOLE if "tritonize " in line.split("#")[0] and "docker" not in line])
def test_tritonize_lines(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    context = click.Context(tritonize)
    command = tritonize.get_command(context, words[0])
    assert command is not None, words[0]
    known = {flag for parameter in command.params for flag in parameter.opts}
    assert {word for word in words[1:] if word.startswith("--")} <= known


def test_there_are_lines_to_test() -> None:
    assert any(line.startswith("make export serve") for line in CONSOLE)
    assert any(line.startswith("make test") for line in CONSOLE)


def test_every_target_and_command_is_named() -> None:
    for name in [*COMMANDS, *(TARGETS - {"all"})]:
        assert name in README, name


def test_its_recipe_is_one() -> None:
    recipe = tomllib.loads(re.findall(r"```toml\n(.*?)```", README, re.DOTALL)[0])
    context = click.Context(tritonize)
    for section, options in recipe.items():
        if not isinstance(options, dict):
            assert section in shared_options(tritonize)
            continue
        command = tritonize.get_command(context, section)
        assert command is not None
        assert {key.replace("-", "_") for key in options} <= {parameter.name for parameter in command.params}


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (PROJECT / target).exists(), target


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README
