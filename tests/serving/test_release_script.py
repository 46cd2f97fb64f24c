"""The release as one script: its steps in order, and the way back from each of them."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from export.cli import COMMANDS, tritonize

PROJECT = Path(__file__).parents[2]
SCRIPT = PROJECT / "serving" / "deploy" / "release.sh"
OLD, NEW = "20260101000000", "20260102000000"

STANDIN = f"""#!/bin/bash
# Stands in for tritonize: writes down what it is called with, fails where it is told to, and remembers the generation that answers.
echo "$*" >> "$HERE/calls"
[ "$1" != "$FAILS" ] || exit 1
case "$1" in
  status) printf 'name\\tgeneration\\tcurrent\\tstate\\n%s\\t%s\\tyes\\tanswers\\n' reviews "$(cat "$HERE/answering")" ;;
  promote) if [[ "$3" == 2* ]]; then echo "$3"; else echo {NEW}; fi > "$HERE/answering" ;;
esac
"""


class Release:
    """One run of the script."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        (folder / "answering").write_text(OLD + "\n")
        (folder / "calls").touch()
        (folder / "tritonize").write_text(STANDIN)
        (folder / "tritonize").chmod(0o755)
        environment = {"PATH": os.environ["PATH"], "HERE": str(folder), "TRITONIZE": str(folder / "tritonize"), "NAME": "reviews"}
        self.done = subprocess.run(
            [SCRIPT], env=environment | {"FAILS": ""} | variables, capture_output=True, text=True, check=False, cwd=folder
        )

    @property
    def calls(self) -> list[list[str]]:
        return [shlex.split(line) for line in (self.folder / "calls").read_text().splitlines()]

    @property
    def steps(self) -> list[str]:
        return [call[0] for call in self.calls if call[0] != "status"]

    @property
    def answering(self) -> str:
        return (self.folder / "answering").read_text().strip()


ALL = {"KEY": "key.pem", "VERIFY_KEY": "key.pub", "IMAGE": "reviews.tar", "GATE": "a >= 1\nb >= 2"}


def test_all_steps_run_in_order_with_options_that_exist(tmp_path: Path) -> None:
    release = Release(tmp_path, **ALL)
    assert release.done.returncode == 0, release.done.stderr
    assert release.steps == ["package", "serve", "benchmark", "stop", "sign", "image", "promote"]
    assert release.answering == NEW and f"released: reviews answers with {NEW}" in release.done.stdout
    assert "--gate a >= 1 --gate b >= 2" in " ".join(release.calls[3])
    context = click.Context(tritonize)
    for call in release.calls:
        command = tritonize.get_command(context, call[0])
        assert command is not None and call[0] in COMMANDS
        flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in call if word.startswith("--")} <= flags, call


@pytest.mark.parametrize("step", ["package", "serve", "benchmark", "sign", "image", "promote"])
def test_a_step_that_fails_ends_on_the_good_generation(tmp_path: Path, step: str) -> None:
    release = Release(tmp_path, FAILS=step, **ALL)
    assert release.done.returncode != 0 and release.answering == OLD
    assert release.calls[-1][:3] == ["promote", "reviews", OLD], "also where a server that is started later would serve the new one"
    assert "release failed at: " in release.done.stderr
    assert (release.steps.count("serve") > 0) == (release.steps.count("stop") > 0), "the second server is stopped"


def test_a_check_that_fails_is_rolled_back(tmp_path: Path) -> None:
    release = Release(tmp_path, CHECK='grep -q 20260102 "$HERE/answering" && touch "$HERE/asked" && false')
    assert release.done.returncode == 1 and release.answering == OLD
    assert (tmp_path / "asked").exists(), "the new generation answered when the check ran"
    assert "release failed at: check" in release.done.stderr


def test_nothing_begins_without_a_server_or_with_half_a_pair_of_keys(tmp_path: Path) -> None:
    release = Release(tmp_path, NAME="other")
    assert release.done.returncode == 1 and "no server at port 8000 answers for other" in release.done.stderr
    (tmp_path / "second").mkdir()
    second = Release(tmp_path / "second", KEY="key.pem")
    assert second.done.returncode == 2 and "KEY needs VERIFY_KEY" in second.done.stderr
    assert not release.steps and not second.steps
