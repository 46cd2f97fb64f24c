"""The name of a model where the user gives none: taken from an artifact, or from the file that the model is made from."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import click

from serving.artifact import artifact_names, read_manifest
from serving.click_options import RECIPE_STEM
from serving.manifests import BundleManifest
from serving.options import LONGEST_NAME, PackageOptions
from serving.reporting import logger


def as_model_name(text: str) -> str:
    """Turn any text, such as the name of a file, into the name of a model.

    Args:
        text: The text.

    Returns:
        The text without accents, with ``-`` in place of what a name cannot have; ``model`` if nothing is left of it.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", plain).strip("-.")[:LONGEST_NAME] or "model"


def recipe_name(ctx: click.Context) -> str | None:
    """Return the name that a model has after its recipe file; None without a recipe, or with a built-in one."""
    stem = ctx.meta.get(RECIPE_STEM)
    return None if stem is None else as_model_name(stem)


def tell_name(name: str, source: str) -> str:
    """Tell the user a name that was chosen, and return it.

    Args:
        name: The name.
        source: Where it comes from.
    """
    logger.info(f"the model is called {name}, after {source} (--name changes this)")
    return name


def only_artifact(artifacts: Path, kind: str, remedy: str) -> str:
    """Return the name of the only artifact of a kind.

    Args:
        artifacts: Folder of the artifacts.
        kind: ``checkpoint`` or ``bundle``.
        remedy: The command that makes one.

    Raises:
        click.UsageError: There is none, or there are several.
    """
    names = artifact_names(artifacts, kind)
    if not names:
        raise click.UsageError(f"{artifacts} holds no {kind}: give --name or --{kind}, or make one with: {remedy}")
    if len(names) > 1:
        raise click.UsageError(f"{artifacts} holds several {kind}s: choose one with --name: {', '.join(names)}")
    return names[0]


def bundle_name(bundle: Path | None, artifacts: Path, from_recipe: str | None) -> str:
    """Return the name of a model that is packaged or measured, and tell the user.

    Args:
        bundle: The folder of the bundle, if the user gave it.
        artifacts: Folder of the artifacts.
        from_recipe: The name after the recipe file.

    Raises:
        ArtifactError: The bundle cannot be read.
        click.UsageError: No bundle is given, and there is not exactly one.
    """
    if bundle is not None:
        return tell_name(read_manifest(bundle, BundleManifest).name, "its bundle")
    if from_recipe is not None:
        return tell_name(from_recipe, "the recipe")
    return tell_name(only_artifact(artifacts, BundleManifest.artifact_kind, "tritonize export"), f"the only bundle in {artifacts}")


def named_for_packaging(options: PackageOptions, from_recipe: str | None = None) -> PackageOptions:
    """Fill in the name if the user gave none: that of the bundle, of the recipe file, or of the only bundle.

    Raises:
        ArtifactError: As :func:`bundle_name`.
        click.UsageError: See there.
    """
    if options.name:
        return options
    return replace(options, name=bundle_name(options.bundle, options.artifacts, from_recipe))
