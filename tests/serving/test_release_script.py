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
OLD, NEW, LATER = "20260101000000", "20260102000000", "20260103000000"

STANDIN = f"""#!/bin/bash
# Stands in for tritonize: writes down what it is called with, fails where it is told to, and remembers the generation that answers.
echo "$*" >> "$HERE/calls"
[ "$1" != "$FAILS" ] || exit 1
case "$1" in
  package)
    echo '{{"schema_version": 9, "name": "reviews", "generation": "{NEW}", "files": {{"a": "1"}}}}'
    echo {NEW} > "$HERE/current" ;;
  benchmark) [ -z "$INTRUDER" ] || echo "$INTRUDER" > "$HERE/current" ;;
  status)
    answering="$(cat "$HERE/answering")"; current="$(cat "$HERE/current")"
    [[ "$*" != *18000* ]] || answering="${{STAGED:-$current}}"
    for generation in {OLD} {NEW} {LATER}; do
      yes=""; [ "$generation" != "$current" ] || yes=yes
      state=stored; [ "$generation" != "$answering" ] || state=answers
      printf '%s\\t%s\\t%s\\t%s\\n' reviews "$generation" "$yes" "$state"
    done ;;
  promote) echo "$3" | tee "$HERE/answering" > "$HERE/current" ;;
esac
"""


class Release:
    """One run of the script."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        for kind in ("answering", "current"):
            (folder / kind).write_text(OLD + "\n")
        (folder / "calls").touch()
        (folder / "tritonize").write_text(STANDIN)
        (folder / "tritonize").chmod(0o755)
        environment = {"PATH": os.environ["PATH"], "HERE": str(folder), "TRITONIZE": str(folder / "tritonize"), "NAME": "reviews"}
        environment |= {"FAILS": "", "INTRUDER": "", "STAGED": ""} | variables
        self.done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False, cwd=folder)

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
    steps = {call[0]: call for call in release.calls}
    assert "--gate a >= 1 --gate b >= 2" in " ".join(steps["benchmark"])
    assert steps["sign"][:3] == ["sign", "model_repository", "reviews"], "nobody else's packages"
    assert steps["promote"][:3] == ["promote", "reviews", NEW]
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
    begun = step != "serve" and "serve" in release.steps
    assert begun == ("stop" in release.steps), "the second server is stopped, and no server that is somebody else's"


def test_only_the_generation_that_was_measured_is_signed_and_promoted(tmp_path: Path) -> None:
    (tmp_path / "staged").mkdir()
    staged = Release(tmp_path / "staged", STAGED=OLD, **ALL)
    assert f"the second server does not serve generation {NEW}" in staged.done.stderr and "benchmark" not in staged.steps
    again = Release(tmp_path, INTRUDER=LATER, **ALL)
    assert f"reviews was packaged again meanwhile: the current generation is not {NEW}" in again.done.stderr
    assert again.steps == ["package", "serve", "benchmark", "stop", "promote"] and again.answering == OLD
    assert staged.done.returncode == again.done.returncode == 1 and staged.answering == OLD


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
