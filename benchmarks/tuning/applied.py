"""A winner as lines of a recipe, which stand together under a remark of where they come from. Pure: text in, text out.

Lines that an earlier tuning wrote make room for new ones. Whatever else stands in a recipe is the user's own, and stays.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from serving.configuration import Configuration
from serving.errors import ArtifactError
from serving.tuning import Tuning

SECTION = "package"
NAMES = ("precision", "batching", "instances", "threads", "max-batch-size", "queue-delay-us")
TOGETHER = {"instances", "threads"}
"""Either without the other was never measured."""
_HEADER = re.compile(r"""\s*\[\s*(package|"package"|'package')\s*\]\s*(#.*)?""", re.DOTALL)
_REMARK = re.compile(r"\s*# tuned on .*: remove these lines to go back\s*")
_WRITTEN = re.compile(rf"\s*({'|'.join(NAMES)})\s*=.*", re.DOTALL)


def recipe_values(configuration: Configuration) -> dict[str, str | int]:
    """Options of ``tritonize package`` that serve a model so on that device."""
    values = {name.replace("_", "-"): value for name, value in asdict(configuration).items()}
    return {name: values[name] for name in NAMES if name != "threads" or configuration.device == "cpu"}


def remark(tuning: Tuning) -> str:
    """What stands above the lines of a winner."""
    found = f"{tuning.winner.device}, bundle {tuning.manifest.bundle_sha256[:12]}, {tuning.manifest.created:%Y-%m-%d}"
    return f"# tuned on {found}: remove these lines to go back"


def pins(content: str, values: Mapping[str, str | int]) -> list[str]:
    """Names of the options that the user's own lines in a recipe set otherwise."""
    own = _own_options(_parsed("".join(_without(content))))
    return [name for name, value in values.items() if own.get(name, value) != value]


def with_winner(content: str, said: str, values: Mapping[str, str | int]) -> str:
    """A recipe that serves so, but for what :func:`pins` names; without any winner where it pins another precision, for which
    nothing else was measured.

    Args:
        said: the :func:`remark`.

    Raises:
        ArtifactError: the recipe does not have the section as one of its own.
    """
    lines = _without(content)
    before = _parsed("".join(lines))
    own, pinned = _own_options(before), set(pins(content, values))
    if "precision" in pinned:
        return "".join(lines)
    left_out = own.keys() | (TOGETHER if pinned & TOGETHER else set())
    chosen = {name: value for name, value in values.items() if name not in left_out}
    end = "\r\n" if "\r\n" in content else "\n"
    written = [said, *(f"{name} = {_toml(value)}" for name, value in chosen.items())] if chosen else []
    place = next((number for number, line in enumerate(lines, 1) if _HEADER.fullmatch(line)), None)
    if place is None:
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += end
        lines += [*([end] if lines else []), f"[{SECTION}]{end}"]
        place = len(lines)
    elif not lines[place - 1].endswith("\n"):
        lines[place - 1] += end
    if written and "".join(lines[place : place + 1]).strip():
        written.append("")  # the end of what was written: what follows is the user's
    changed = "".join([*lines[:place], *(line + end for line in written), *lines[place:]])
    _require(changed, before | {SECTION: {**before.get(SECTION, {}), **chosen}})
    return changed


def _without(content: str) -> list[str]:
    """Lines of a recipe, with their ends, but for those that a tuning wrote."""
    kept: list[str] = []
    written = False
    for line in content.splitlines(keepends=True):
        written = bool(_REMARK.fullmatch(line) or (written and _WRITTEN.fullmatch(line)))
        if not written:
            kept.append(line)
    return kept


def _own_options(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe says to ``tritonize package``, by name with dashes; a list at its top is for other commands."""
    section = {name.replace("_", "-"): value for name, value in recipe.get(SECTION, {}).items()}
    shared = {name: value for name, value in recipe.items() if not isinstance(value, dict | list)}
    return shared | section


def _parsed(content: str) -> dict[str, Any]:
    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise ArtifactError(f"the recipe is no TOML: {error}") from error


def _require(content: str, expected: Mapping[str, Any]) -> None:
    """Refuse a recipe that would say anything but what is meant."""
    try:
        found = tomllib.loads(content)
    except tomllib.TOMLDecodeError:
        found = {}
    if found != expected:
        raise ArtifactError(
            f"the recipe's options for {SECTION} cannot be added to", hint=f"write them as a section of its own: [{SECTION}]"
        )


def _toml(value: str | int) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
