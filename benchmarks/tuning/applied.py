"""Writes the winner of a tuning into the ``[package]`` section of a recipe, through ``tomlkit``: text in, text out.

The winner stands directly below the section's header, under a comment that says where it comes from. At the end of the section
``tomlkit`` would put it behind the comments of the next section. Lines that an earlier tuning wrote are replaced; everything else
in a recipe belongs to the user and stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Comment, Item, Key, Table

from serving.configuration import Configuration, has_fused
from serving.errors import ArtifactError
from serving.tuning import Tuning

SECTION = "package"
STEP_INSTANCES = ("preprocess-instances", "postprocess-instances")
NAMES = ("precision", "batching", "layout", "instances", "threads", "max-batch-size", "queue-delay-us", *STEP_INSTANCES)
TOGETHER = {"instances", "threads"}
"""Each was measured with the other only."""
GENERATION_NAMES = ("precision", "threads", "max-batch-size")
"""Options that a model which generates has."""
_REMARK = re.compile(r"# tuned on .*: remove these lines to go back")

Entry = tuple[Key | None, Item]


def recipe_values(configuration: Configuration) -> dict[str, str | int]:
    """Return the options of ``tritonize package`` that serve a model in this configuration on its device."""
    values = {name.replace("_", "-"): value for name, value in asdict(configuration).items()}
    if configuration.layout == "generation":
        return {name: values[name] for name in GENERATION_NAMES}
    left_out = set(STEP_INSTANCES) if configuration.device == "cpu" else {"threads"}  # on a CPU, tuning leaves them at the default
    if not has_fused(configuration.device, configuration.batching):
        left_out.add("layout")
    return {name: values[name] for name in NAMES if name not in left_out}


def remark(tuning: Tuning) -> str:
    """Return the comment above the lines of a winner."""
    found = f"{tuning.winner.device}, bundle {tuning.manifest.bundle_sha256[:12]}, {tuning.manifest.created:%Y-%m-%d}"
    return f"# tuned on {found}: remove these lines to go back"


def pins(content: str, values: Mapping[str, str | int]) -> list[str]:
    """Return the names of the options that the user set to another value in a recipe.

    Raises:
        ArtifactError: See :func:`with_winner`.
    """
    own = _own_options(_without_winner(content))
    return [name for name, value in values.items() if own.get(name, value) != value]


def with_winner(content: str, comment: str, values: Mapping[str, str | int]) -> str:
    """Return a recipe that serves the model with these values, except for what :func:`pins` names.

    If the recipe pins another precision, it gets no winner: nothing else was measured for that precision.

    Raises:
        ArtifactError: The recipe is not TOML, or does not have the section as a table with a header.
    """
    end = "\r\n" if "\r\n" in content else "\n"
    document = _without_winner(content if content.endswith("\n") or not content else content + end)
    own, pinned = _own_options(document), set(pins(content, values))
    left_out = own.keys() | (TOGETHER if pinned & TOGETHER else set())
    chosen = {name: value for name, value in values.items() if name not in left_out}
    text = document.as_string()
    if not chosen or "precision" in pinned:
        return text
    if SECTION not in document:
        document = tomlkit.parse(f"{text}{end if text else ''}[{SECTION}]{end}")
    body = _section_body(document)
    body[:0] = _entries(comment, chosen, end, followed=_is_followed(document, body))
    return document.as_string()


def _entries(comment: str, chosen: Mapping[str, str | int], end: str, *, followed: bool) -> list[Entry]:
    """Return the entries of a winner; an empty line ends them if something follows."""
    block = tomlkit.document()
    block.add(tomlkit.comment(comment.removeprefix("# ")))
    for name, value in chosen.items():
        block.add(name, tomlkit.item(value))
    if followed:
        block.add(tomlkit.nl())
    return tomlkit.parse(block.as_string().replace("\n", end)).body


def _section_body(document: tomlkit.TOMLDocument) -> list[Entry]:
    """Return the entries of the section, in which changes show."""
    section = document.item(SECTION)
    if not isinstance(section, Table) or section.is_super_table():
        raise ArtifactError(
            f"the recipe's options for {SECTION} cannot be added to", hint=f"write them as a section of its own: [{SECTION}]"
        )
    return section.value.body


def _is_followed(document: tomlkit.TOMLDocument, body: list[Entry]) -> bool:
    """Return whether there is a line after the section's header that is not empty."""
    if body:
        key, item = body[0]
        return key is not None or bool(item.as_string().partition("\n")[0].strip())
    return document.body[-1][1] is not document.item(SECTION)


def _without_winner(content: str) -> tomlkit.TOMLDocument:
    """Parse a recipe and remove the lines that an earlier tuning wrote."""
    try:
        document = tomlkit.parse(content)
    except TOMLKitError as error:
        raise ArtifactError(f"the recipe is not valid TOML: {error}") from error
    if SECTION not in document:
        return document
    body = _section_body(document)
    kept: list[Entry] = []
    written = False
    for key, item in body:
        is_remark = isinstance(item, Comment) and _REMARK.fullmatch(item.as_string().strip()) is not None
        written = is_remark or (written and key is not None and key.key in NAMES)
        if not written:
            kept.append((key, item))
    body[:] = kept
    return tomlkit.parse(document.as_string())


def _own_options(document: tomlkit.TOMLDocument) -> dict[str, object]:
    """Return the options of ``tritonize package`` in a recipe, by name with dashes; a list at the top is for other commands."""
    recipe = document.unwrap()
    section = {name.replace("_", "-"): value for name, value in recipe.get(SECTION, {}).items()}
    shared = {name: value for name, value in recipe.items() if not isinstance(value, dict | list)}
    return shared | section
