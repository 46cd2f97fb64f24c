"""The ``tritonize`` command: subcommands in pipeline order, each imported only when it is called."""

from __future__ import annotations

import os
import select
import signal
import sys
import traceback
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated

import click

from export.recipe import apply_recipe, builtin_recipes
from serving.click_options import FieldOption
from serving.errors import TritonizeError
from serving.install import NO_TELEMETRY
from serving.option_fields import Option, option_fields
from serving.reporting import report_to_stderr
from serving.writing import describe

COMMANDS = {
    "finetune": "export.commands",
    "export": "export.commands",
    "package": "serving.commands",
    "serve": "serving.commands",
    "stop": "serving.commands",
    "predict": "serving.commands",
    "benchmark": "benchmarks.commands",
    "tune": "benchmarks.tune_commands",
    "compare": "benchmarks.compare_commands",
    "models": "serving.models_commands",
    "remove": "serving.models_commands",
    "status": "serving.release_commands",
    "promote": "serving.release_commands",
    "rollback": "serving.release_commands",
    "load": "serving.release_commands",
    "unload": "serving.release_commands",
    "sign": "serving.signing_commands",
    "image": "serving.image_commands",
    "doctor": "serving.commands",
}
"""Command → the module that holds its function. A module is imported when its command runs, so that ``--help`` is fast."""

HELP = {
    "finetune": "Train a checkpoint on labelled rows and keep the best epoch.",
    "export": "Convert a checkpoint to ONNX (fp32, fp16, int8) and verify each variant on real rows.",
    "package": "Turn a bundle into a Triton model repository.",
    "serve": "Start Triton and wait until every ensemble answers.",
    "stop": "Stop a server that runs in the background.",
    "predict": "Ask a running server.",
    "benchmark": "Measure speed and quality against the PyTorch original; check gates.",
    "tune": "Search the fastest serving configuration for this machine, and package it.",
    "compare": "Compare two benchmark reports and name what became worse.",
    "models": "List the packaged models, what is served, and what is out of date.",
    "remove": "Remove a packaged model.",
    "status": "List the generations of each model, and which a running server answers with.",
    "promote": "Let a running server answer with a new generation, without losing a request.",
    "rollback": "Let a running server answer with the generation before.",
    "load": "Load a generation into a running server.",
    "unload": "Unload a model from a running server.",
    "sign": "Sign a bundle or a model repository.",
    "image": "Make a container image of the server with packaged models.",
    "doctor": "Check this machine and both environments; say what to fix.",
}
INTERRUPTED = {
    "serve": "no server of this command is left",
    "stop": "a server that was told to stop still does so; run the same command again to wait for it",
    "predict": "every answer that is printed is complete, and nothing more is asked",
    **dict.fromkeys(("compare", "models", "status", "doctor"), "nothing was changed"),
    "remove": "a part may be removed already: see what is left with: tritonize models",
    **dict.fromkeys(("promote", "rollback", "load", "unload"), "see what the server answers with: tritonize status"),
}
"""Command → what is true after Ctrl-C, where the command itself does not say it."""
INTERRUPTED_ARTIFACT = "no half-written artifact is left; run the same command again to continue or restart"
"""What is true of the other commands, which write artifacts."""
BROKEN_PIPE = 128 + signal.SIGPIPE
"""The exit code if the reader of standard output, such as ``head``, has ended: that of a tool which SIGPIPE ended."""
QUIET_LIBRARIES = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""Environment variables that turn off the progress bars of libraries, which fill a log with one line per update."""
DEBUG = "tritonize.debug"
"""Key in the metadata of a Click context: whether tracebacks are shown."""


def _recipe_help() -> str:
    return f"TOML recipe to read options from: a file, or a built-in recipe ({', '.join(builtin_recipes())}). Flags win."


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Options of every command."""

    recipe: Annotated[
        str | None,
        Option(_recipe_help, metavar="NAME|FILE"),
    ] = None
    debug: Annotated[bool, Option("Show the traceback of an error.")] = False


class PipelineGroup(click.Group):
    """A group that imports a subcommand on demand and adds the options that all commands share."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the subcommands in pipeline order.

        Args:
            ctx: Context of the group.

        Returns:
            Their names.
        """
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a subcommand.

        Args:
            ctx: Context of the group.
            name: Name of the subcommand.

        Returns:
            The command; None if it does not exist.
        """
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(COMMANDS[name]), f"{name}_command")
        if not any(parameter.name == "recipe" for parameter in command.params):
            command.params += _common_options()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of subcommands from :data:`HELP`, without importing them.

        Args:
            ctx: Context of the group.
            formatter: The help page.
        """
        with formatter.section("Commands"):
            formatter.write_dl(list(HELP.items()))


def _common_options() -> list[click.Parameter]:
    """Create the options of every command. ``--recipe`` is eager: it sets the defaults before any other option is read."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.find_root().meta[DEBUG] = value

    recipe, debug = option_fields(CommonOptions)
    return [
        FieldOption([recipe.flag], source=recipe, required=False, is_eager=True, expose_value=False, callback=apply_recipe),
        FieldOption([debug.flag], source=debug, required=False, expose_value=False, callback=remember),
    ]


@click.group(
    cls=PipelineGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110}
)
@click.version_option(package_name="tritonize")
@click.pass_context
def tritonize(ctx: click.Context) -> None:
    """Take a Hugging Face checkpoint to production on NVIDIA Triton.

    The stages in order: finetune → export → package → serve → predict, benchmark, tune. Every option can stand in a TOML
    recipe (--recipe); flags win.
    """


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. All errors are printed here.

    Args:
        arguments: Arguments of the command; None: those of this process.

    Returns:
        The exit code: 0 done, 1 a stage failed or a gate did not hold, 2 wrong usage, 141 nobody reads standard output any more.
    """
    meta: dict[str, object] = {}
    root: click.Context | None = None
    os.environ |= NO_TELEMETRY
    if not sys.stderr.isatty():
        os.environ |= QUIET_LIBRARIES | os.environ  # what the user has set holds
    if arguments is None:  # this is the main program: SIGTERM cleans up as Ctrl-C does
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with report_to_stderr(), tritonize.make_context("tritonize", list(sys.argv[1:] if arguments is None else arguments)) as ctx:
            root, meta = ctx, ctx.meta
            tritonize.invoke(ctx)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as stopped:
        command = "" if root is None else root.invoked_subcommand or ""
        click.echo(f"interrupted: {str(stopped) or INTERRUPTED.get(command, INTERRUPTED_ARTIFACT)}", err=True)
        return 1
    except TritonizeError as error:
        if meta.get(DEBUG):
            traceback.print_exc()
        click.echo(f"error: {error.message_with_hint}", err=True)
        return 1
    except OSError as error:
        return _report_os_error(error, debug=bool(meta.get(DEBUG)))
    return 0


def _report_os_error(error: OSError, *, debug: bool) -> int:
    """Print the error, unless it is that nobody reads standard output any more, and return the exit code."""
    unread = isinstance(error, BrokenPipeError) and _output_is_unread()
    _drop_unwritable_output()
    if debug:
        traceback.print_exc()
    if unread:
        return BROKEN_PIPE
    click.echo(f"error: {describe(error)}", err=True)
    return 1


def _output_is_unread() -> bool:
    """Return whether standard output is a pipe whose reader has ended; other pipes and sockets can break, too."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _drop_unwritable_output() -> None:
    """Discard what standard output cannot take. Python would try again when it ends, and end with a traceback and code 120."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
