"""Options that benchmark and tune have in common: which exported model they are about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

import click

from serving.option_fields import Option
from serving.options import ArtifactsOptions, RepositoryOptions, parse_model_name

Options = TypeVar("Options", bound="ExportedModelOptions")


@dataclass(frozen=True, kw_only=True)
class ExportedModelOptions(ArtifactsOptions, RepositoryOptions):
    """Which exported model a command is about."""

    name: Annotated[
        str,
        Option(
            "Name of the model, in place of the argument.",
            parse=parse_model_name,
            default_text="the argument; otherwise that of the bundle",
            shared=True,
        ),
    ] = ""
    bundle: Annotated[
        Path | None, Option("Folder that export wrote.", path="folder", default_text="ARTIFACTS/NAME/bundle", shared=True)
    ] = None

    @property
    def bundle_folder(self) -> Path:
        """The folder of the bundle."""
        return self.bundle or self.artifacts / self.name / "bundle"


def with_model_name(ctx: click.Context, model: str | None, options: Options) -> Options:
    """Set the name of the model. The argument wins over the option, which may come from a recipe.

    Raises:
        ArtifactError: The bundle, whose name would be taken, cannot be read.
        click.UsageError: Neither is given, nor a bundle or a recipe file, and there is not exactly one bundle.
        click.BadParameter: The argument cannot be a name.
    """
    if model is None and not options.name:
        from serving.naming import bundle_name, recipe_name

        return replace(options, name=bundle_name(options.bundle, options.artifacts, recipe_name(ctx)))
    try:
        return options if model is None else replace(options, name=parse_model_name(model))
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param_hint="NAME") from None
