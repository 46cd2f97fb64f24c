"""The command ``sign``."""

from __future__ import annotations

from pathlib import Path

import click

from serving.click_options import with_options
from serving.signing_options import SigningOptions


@click.command("sign")
@click.argument("artifact", metavar="BUNDLE|REPOSITORY", type=click.Path(path_type=Path))
@with_options
def sign_command(artifact: Path, options: SigningOptions) -> None:
    """Sign a bundle, or what every package of a model repository serves now.

    Its files are compared with its manifest first, so that nothing is signed that was altered. package and serve verify the
    signature with --verify-key.
    """
    from serving.signed_artifacts import sign_artifact

    for signature in sign_artifact(artifact, options):
        click.echo(f"{signature} is written")
