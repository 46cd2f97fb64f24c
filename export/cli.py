"""The ``tritonize`` command: subcommands in pipeline order, each loaded only when it is called."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from importlib import import_module
from typing import Any

import click

from export.recipe import recipe_option
from serving.errors import TritonizeError
from serving.install import NO_TELEMETRY
from serving.reporting import report_to_stderr

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
    "doctor": "serving.commands",
}
"""Command → the module that holds it under the same name. A module is imported when its command runs: ``--help`` stays instant."""

HELP = {
    "finetune": "Train a checkpoint on labelled rows and keep the best epoch.",
    "export": "Convert a checkpoint to ONNX (fp32, fp16, int8) and verify each on real rows.",
    "package": "Turn a bundle into a Triton model repository.",
    "serve": "Start Triton and wait until every ensemble really answers.",
    "stop": "Stop a server that runs in the background.",
    "predict": "Ask a running server.",
    "benchmark": "Measure speed and quality against the PyTorch original; check gates.",
    "tune": "Find out how a model is best served on this machine, and serve it so.",
    "compare": "Compare two reports of benchmarks; name what became worse.",
    "doctor": "Check this machine and both environments; say what to fix.",
}


class PipelineGroup(click.Group):
    """Loads a subcommand on demand and gives each the options that all share."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(COMMANDS[name]), f"{name}_command")
        if not any(parameter.name == "recipe" for parameter in command.params):
            command.params += [recipe_option(), _debug_option()]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does, but from :data:`HELP`, without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(HELP.items()))


def _debug_option() -> click.Option:
    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.find_root().meta["tritonize.debug"] = ctx.find_root().meta.get("tritonize.debug", False) or value

    return click.Option(["--debug"], is_flag=True, expose_value=False, callback=remember, help="Show the traceback of an error.")


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
    """Run the command line. The one place that prints errors.

    Returns:
        The exit code: 0 done, 1 a stage failed or a gate did not hold, 2 wrong usage.
    """
    meta: dict[str, Any] = {}
    os.environ |= NO_TELEMETRY
    if arguments is None:  # a program of its own: told to end, it tidies up as for Ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with report_to_stderr(), tritonize.make_context("tritonize", list(sys.argv[1:] if arguments is None else arguments)) as ctx:
            meta = ctx.meta
            tritonize.invoke(ctx)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(
            "interrupted: nothing half-written was left behind; the same command starts again",
            err=True,
        )
        return 1
    except TritonizeError as error:
        if meta.get("tritonize.debug"):
            traceback.print_exc()
        click.echo(f"error: {error.message}" + (f" ({error.hint})" if error.hint else ""), err=True)
        return 1
    except OSError as error:
        if meta.get("tritonize.debug"):
            traceback.print_exc()
        place = f" {os.fspath(error.filename)}" if error.filename else ""
        click.echo(f"error:{place} {error.strerror or error}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
