"""The command line: fast help, exit codes, one-line errors, recipes."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import resource
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from export.cli import COMMANDS, HELP, INTERRUPTED, INTERRUPTED_ARTIFACT, main, tritonize
from tests.helpers.surroundings import free_port, port_options

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "onnx",
    "onnxruntime",
    "tritonclient",
    "numpy",
    "rich",
    "pyarrow",
    "grpc",
    "aiohttp",
    "pydantic",
)


@pytest.fixture(autouse=True)
def _nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test where there are no artifacts."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(list(arguments))
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def started(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "export.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | variables)


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_imports_nothing_heavy(command: str | None) -> None:
    arguments = ["--help"] if command is None else [command, "--help"]
    script = (
        f"import sys; from export.cli import main; code = main({arguments!r});"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    describes_tasks = command in {"finetune", "export"}  # whose classes need numpy
    assert done.stderr.strip() == ("['numpy']" if describes_tasks else "[]")
    assert "--help" in done.stdout


def test_help_is_instant() -> None:
    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert started("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # processor time: others may be busy here

    assert min(once() for _ in range(5)) < 0.3


def test_every_command_is_there_documented_and_takes_a_recipe() -> None:
    context = click.Context(tritonize)
    assert set(HELP) == set(COMMANDS)
    for name in COMMANDS:
        command = tritonize.get_command(context, name)
        assert command is not None and command.name == name and command.help
        assert {"recipe", "debug"} <= {parameter.name for parameter in command.params}
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help or option.name in {"device", "http_port", "grpc_port", "metrics_port", "protocol"}, (
                    name,
                    option.name,
                )
    for module in set(COMMANDS.values()):
        import_module(module)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["package", "--precision", "fp8", "--name", "x"], "fp8"),
        (["package", "--name", "../x"], "is not a model name"),
        (["serve", "--http-port", "0"], "--http-port"),
        (["serve", "--recipe", "no-such-recipe"], "no recipe 'no-such-recipe'"),
        (["predict"], "Missing argument"),
        (["package"], "artifacts holds no bundle: give --name or --bundle"),
        (["package", "--artifacts", "elsewhere"], "elsewhere holds no bundle: give --name or --bundle"),
        (["predict", "x", "--input", "/no/such/file", "--output", "y"], "does not exist"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["package", "--name", "x", "--bundle", "/no/such"], "no bundle at /no/such"),
        (["serve", "--repository", "/no/such", *port_options()], "holds no packaged ensemble"),
        (["stop", "--http-port", "1"], "you have no server"),
        (["predict", "x", "text", "--url", f"127.0.0.1:{free_port()}"], "no Triton server answers"),
        (["export", "--name", "x", "--artifacts", "/no/such"], "no checkpoint at"),
        (["package", "--name", "x", "--artifacts", "/no/such"], "no bundle at /no/such/x/bundle"),
    ],
)
def test_failure_is_1_and_one_line(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], done.stderr
    assert "(" in lines[0]  # and what to do next


@pytest.mark.parametrize(("arguments", "code"), [(["nothing"], 2), (["stop", "--http-port", "1"], 1), (["--version"], 0)])
def test_the_process_ends_with_the_exit_code(arguments: list[str], code: int) -> None:
    done, inside = started(*arguments), run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (code, inside.stdout, inside.stderr)


def test_debug_shows_the_traceback() -> None:
    done = run("serve", "--repository", "/no/such", "--debug", *port_options())
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ArtifactError" in done.stderr


def test_recipe_values_are_defaults_and_flags_win(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('name = "mine"\n[package]\nbundle = "/from/the/recipe"\n')
    assert "/from/the/recipe" in run("package", "--recipe", str(recipe)).stderr
    assert "/from/a/flag" in run("package", "--recipe", str(recipe), "--bundle", "/from/a/flag").stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name = ", "recipe"),
        ('[package]\nprecison = "fp16"', "precison"),
        ("[pakage]\nname = 'x'", "pakage"),
        ('nmae = "x"', "nmae"),
        ('[package]\nname = "x"\nthreads = "many"', "threads"),
    ],
)
def test_a_wrong_recipe_is_wrong_usage(tmp_path: Path, content: str, message: str) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(content)
    done = run("package", "--recipe", str(recipe))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["models", "--json"], ["doctor"]], ids=" ".join)
def test_the_command_ends_quietly_when_nobody_reads_its_output(arguments: list[str], unbuffered: str) -> None:
    """As ``tritonize models | head`` does. A shell reports 141 for a program that SIGPIPE ended."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "export.cli", *arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_pipe_that_broke_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("serving.server_record.running_servers", broken)
    done = run("models")
    assert (done.returncode, done.stderr) == (1, "error: Broken pipe\n")


def test_version() -> None:
    from importlib.metadata import version

    assert version("tritonize") in run("--version").stdout


def test_doctor_tells_what_is_wrong_as_json() -> None:
    done = started("doctor", "--json", "--http-port", "1", PATH="/usr/bin:/bin", TRITONIZE_TRITON_ENV="/no/such")
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert not findings["tritonserver"]["ok"] and "make setup" in findings["tritonserver"]["hint"]
    assert findings["Python"]["ok"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["serve", "--detach"], "no server of this command is left"),
        (["predict", "reviews", "a text"], "every answer that is printed is complete, and nothing more is asked"),
        (["models"], "nothing was changed"),
        (["export", "--name", "reviews"], INTERRUPTED_ARTIFACT),
    ],
)
def test_ctrl_c_says_what_is_true_of_the_command(command: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def press_ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    assert INTERRUPTED.keys() < COMMANDS.keys()
    monkeypatch.setattr(click.Command, "invoke", press_ctrl_c)
    done = run(*command)
    assert (done.returncode, done.stderr) == (1, f"interrupted: {said}\n")


def test_libraries_draw_no_bars_into_a_log() -> None:
    script = (
        "from export.cli import main; main(['models'])\n"
        "from tqdm.auto import tqdm\nfrom huggingface_hub.utils import tqdm as hub\nlist(tqdm(range(3))), list(hub(range(3)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "3/3" not in done.stderr


@pytest.mark.parametrize(("given", "found"), [(None, "1"), ("0", "0")])
def test_progress_bars_of_libraries_stay_out_of_a_log_unless_the_user_wants_them(
    given: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", given or "")
    if given is None:
        monkeypatch.delenv("TQDM_DISABLE")
    assert main(["models"]) == 0
    assert os.environ["TQDM_DISABLE"] == found
