"""The command ``image``."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from serving.click_options import ParsedText, with_options
from serving.idle_options import refuse_idle
from serving.image_options import ImageOptions
from serving.options import OutputOptions, parse_model_name


@click.command("image")
@click.argument("names", metavar="NAME...", type=ParsedText(parse_model_name), nargs=-1, required=True)
@with_options
def image_command(names: tuple[str, ...], options: ImageOptions, output: OutputOptions) -> None:
    """Make a container image of the server for CPUs with the packaged models NAME…, without a container engine.

    It needs mmdebstrap, from the Debian package of that name. The image runs as user 1000 and writes into /tmp and /dev/shm only.
    """
    from serving.oci.image import make_image

    if options.repository_only:
        refuse_idle(["--base"], "with --repository-only")
    made = make_image(names, options)
    if output.json:
        click.echo(json.dumps(asdict(made), default=str))
        return
    size = made.path.stat().st_size / 1e6
    click.echo(f"{made.path} is written: {size:.1f} MB, {made.digest}; its contents are listed in {made.bill}")
    click.echo(f"  send it to a registry with: skopeo copy oci-archive:{made.path} docker://REGISTRY/NAME:TAG")
