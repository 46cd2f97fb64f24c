"""The command ``sign``."""

from __future__ import annotations

from pathlib import Path

import click

from serving.click_options import ParsedText, with_options
from serving.options import parse_model_name
from serving.signing_options import SigningOptions


@click.command("sign")
@click.argument("artifact", metavar="BUNDLE|REPOSITORY", type=click.Path(path_type=Path))
@click.argument("packages", metavar="[NAME]...", nargs=-1, type=ParsedText(parse_model_name))
@with_options
def sign_command(artifact: Path, packages: tuple[str, ...], options: SigningOptions) -> None:
    """Sign a bundle, or the current generations of the packages NAME of a model repository; without a NAME, of all its packages.

    Its files are compared with its manifest first, so that nothing is signed that was altered. package and serve verify the
    signature with --verify-key.
    """
    from serving.signed_artifacts import sign_artifact

    for signature in sign_artifact(artifact, packages, options):
        click.echo(f"{signature} is written")
