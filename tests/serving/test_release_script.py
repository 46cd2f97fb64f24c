"""The release as one script: its steps in order, and the way back from each of them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import click
import pytest

from export.cli import COMMANDS, tritonize

PROJECT = Path(__file__).parents[2]
SCRIPT = PROJECT / "serving" / "deploy" / "release.sh"
OLD, NEW, LATER = "20260101000000", "20260102000000", "20260103000000"

STANDIN = f"""#!/bin/bash
# Stands in for tritonize: writes down what it is called with, fails where it is told to, and remembers the generation that answers.
# A server at another port than 8000 runs while there is a file "second", which names its repository.
echo "$*" >> "$HERE/calls"
[ "$1" != "$FAILS" ] || exit 1
hold() {{ # until the test says so, where it is told to
  [ "$1" = "$HOLD" ] || return 0
  touch "$HERE/held"
  for _ in {{1..600}}; do [ ! -e "$HERE/go" ] || return 0; sleep 0.05; done
}}
value_of() {{ # of an option
  local flag="$1"; shift
  while [ $# -gt 1 ]; do [ "$1" != "$flag" ] || echo "$2"; shift; done
}}
case "$1" in
  package)
    repository="$(value_of --repository "$@")"
    mkdir -p "$repository/reviews/{NEW}" "$repository/reviews/warmup/{NEW}"
    for part in reviews/{NEW} reviews.{NEW} reviews.{NEW}_model reviews.{LATER}_model; do
      mkdir -p "$repository/$part"
      echo "$part" > "$repository/$part/config.pbtxt"
    done
    [[ "$*" == *--no-current* ]] || echo {NEW} > "$HERE/current"
    hold package
    echo '{{"schema_version": 9, "name": "reviews", "generation": "{NEW}", "files": {{"a": "1"}}}}' ;;
  serve)
    repository="$(value_of --repository "$@")"
    [ "$repository" != model_repository ] || exit 1
    (cd "$repository" && find . -mindepth 1 | sort) > "$HERE/served"
    cat "$repository/reviews/config.pbtxt" >> "$HERE/served"
    echo "$repository" > "$HERE/second"
    hold serve ;;
  stop) [ "$(value_of --only-repository "$@")" != "$(cat "$HERE/second")" ] || rm "$HERE/second" ;;
  benchmark) [ -z "$INTRUDER" ] || echo "$INTRUDER" > "$HERE/current" ;;
  sign) echo signed > "$2/reviews/{NEW}/manifest.sig" ;;
  status)
    answering="$(cat "$HERE/answering")"; current="$(cat "$HERE/current")"
    [[ "$*" != *18000* ]] || {{ current={NEW}; answering="${{STAGED:-{NEW}}}"; }}
    for generation in {OLD} {NEW} {LATER}; do
      yes=""; [ "$generation" != "$current" ] || yes=yes
      state=stored; [ "$generation" != "$answering" ] || state=answers
      printf '%s\\t%s\\t%s\\t%s\\n' reviews "$generation" "$yes" "$state"
    done ;;
  models) printf 'name\\tstate\\ttask\\tserved\\n%s\\tready\\t%s\\tint8\\tcpu\\n' reviews "$TASK" ;;
  promote)
    hold "promote $3"
    echo "$3" | tee "$HERE/answering" > "$HERE/current"
    hold "promoted $3" ;;
  remove)
    [ "$3" != "$(cat "$HERE/current")" ] || exit 1
    rm -r "$(value_of --repository "$@")/$2/$3" ;;
esac
"""


class Release:
    """One run of the script."""

    def __init__(self, folder: Path, *signals: signal.Signals, to_all: bool = False, **variables: str) -> None:
        """Run the script; send signals where the stand-in holds, to the script or to all of its processes."""
        self.folder = folder
        for kind in ("answering", "current"):
            (folder / kind).write_text(OLD + "\n")
        (folder / "calls").touch()
        (folder / "tritonize").write_text(STANDIN)
        (folder / "tritonize").chmod(0o755)
        environment = {"PATH": os.environ["PATH"], "HERE": str(folder), "TRITONIZE": str(folder / "tritonize"), "NAME": "reviews"}
        environment |= {"FAILS": "", "INTRUDER": "", "STAGED": "", "HOLD": "", "TASK": "translation"} | variables
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        ignored = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a shell cannot trap what nohup lets these tests ignore
        with subprocess.Popen([SCRIPT], env=environment, text=True, cwd=folder, start_new_session=True, **pipes) as script:
            signal.signal(signal.SIGHUP, ignored)
            if signals:
                self._await_hold()
            for number in signals:
                os.killpg(script.pid, number) if to_all else script.send_signal(number)
                time.sleep(0.1)
            (folder / "go").touch()
            self.stdout, self.stderr = script.communicate(timeout=60)
        self.code = script.returncode

    def _await_hold(self) -> None:
        deadline = time.monotonic() + 30
        while not (self.folder / "held").exists():
            assert time.monotonic() < deadline, "the stand-in was not called"
            time.sleep(0.02)

    @property
    def calls(self) -> list[list[str]]:
        return [shlex.split(line) for line in (self.folder / "calls").read_text().splitlines()]

    @property
    def steps(self) -> list[str]:
        return [call[0] for call in self.calls if call[0] not in ("status", "models")]

    @property
    def answering(self) -> str:
        return self._content("answering")

    @property
    def current(self) -> str:
        return self._content("current")

    def _content(self, kind: str) -> str:
        return (self.folder / kind).read_text().strip()

    def assert_as_before(self) -> None:
        """The server and its repository are as they were, and there is no second server and no copy."""
        assert self.code != 0 and (self.answering, self.current) == (OLD, OLD)
        assert "release failed at: " in self.stderr
        self.assert_nothing_left()
        assert not (self.folder / "model_repository" / "reviews" / NEW).exists(), "what has failed cannot be promoted"

    def assert_nothing_left(self) -> None:
        """There is no second server and no copy."""
        assert not (self.folder / "second").exists() and not list(self.folder.glob(".*"))


ALL = {"KEY": "key.pem", "VERIFY_KEY": "key.pub", "IMAGE": "reviews.tar", "GATE": "a >= 1\nb >= 2"}


def test_all_steps_run_in_order_with_options_that_exist(tmp_path: Path) -> None:
    release = Release(tmp_path, **ALL)
    assert release.code == 0, release.stderr
    assert release.steps == ["package", "serve", "benchmark", "stop", "sign", "image", "promote"]
    assert (release.answering, release.current) == (NEW, NEW) and f"released: reviews answers with {NEW}" in release.stdout
    release.assert_nothing_left()
    steps = {call[0]: call for call in release.calls}
    assert "--no-current" in steps["package"], "a server that is started before the gates hold serves what it did"
    assert "--gate served.int8.metric_drop <= 0.01 --gate a >= 1 --gate b >= 2" in " ".join(steps["benchmark"])
    assert steps["sign"][2] == "reviews", "nobody else's packages"
    assert steps["promote"][:3] == ["promote", "reviews", NEW]
    context = click.Context(tritonize)
    for call in [*release.calls, *Release(tmp_path, CHECK="false").calls]:
        command = tritonize.get_command(context, call[0])
        assert command is not None and call[0] in COMMANDS
        flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in call if word.startswith("--")} <= flags, call


@pytest.mark.parametrize(
    ("variables", "gates"),
    [
        ({}, ["served.int8.metric_drop <= 0.01"]),
        ({"QUALITY_GATE": ""}, ["served.int8.metric_drop <= 0.01"]),
        ({"TASK": "text-generation"}, ["served.int8.perplexity_increase <= 0.05"]),
        ({"QUALITY_GATE": "served.int8.f1 >= 0.9", "GATE": "a >= 1"}, ["served.int8.f1 >= 0.9", "a >= 1"]),
        ({"QUALITY_GATE": "none"}, []),
        ({"QUALITY_GATE": "none", "GATE": "a >= 1"}, ["a >= 1"]),
    ],
)
def test_a_gate_of_quality_holds_unless_it_is_switched_off(tmp_path: Path, variables: dict[str, str], gates: list[str]) -> None:
    release = Release(tmp_path, **variables)
    assert release.code == 0, release.stderr
    (called,) = [line for line in (tmp_path / "calls").read_text().splitlines() if line.startswith("benchmark ")]
    assert called.split(" --gate ")[1:] == gates


def test_a_copy_without_the_model_is_not_released(tmp_path: Path) -> None:
    release = Release(tmp_path, TASK="")
    release.assert_as_before()
    assert "the copy holds no reviews" in release.stderr and "benchmark" not in release.steps


def test_what_is_measured_signed_and_in_the_image_is_one_copy_of_the_generation(tmp_path: Path) -> None:
    release = Release(tmp_path, **ALL)
    *copied, configuration = (tmp_path / "served").read_text().splitlines()
    folders = [f"reviews.{NEW}", f"reviews.{NEW}_model", f"reviews/{NEW}"]
    files = [f"./{folder}/config.pbtxt" for folder in (*folders, "reviews")]
    assert set(copied) == {*files, *(f"./{folder}" for folder in (*folders, "reviews", "reviews/warmup", f"reviews/warmup/{NEW}"))}
    assert configuration == f"reviews/{NEW}", "its configuration is that of the package"
    calls = {call[0]: call for call in release.calls}
    (copy,) = {calls[step][calls[step].index("--repository") + 1] for step in ("serve", "benchmark", "image")}
    assert calls["sign"][1] == copy != "model_repository"
    assert calls["image"][calls["image"].index("--verify-key") + 1] == "key.pub", "nothing unsigned comes into the image"
    signature = tmp_path / "model_repository" / "reviews" / NEW / "manifest.sig"
    assert signature.read_text() == "signed\n", "the promoted generation has the signature too"


@pytest.mark.parametrize("step", ["package", "serve", "benchmark", "sign", "image", "promote"])
def test_a_step_that_fails_leaves_everything_as_it_was(tmp_path: Path, step: str) -> None:
    release = Release(tmp_path, FAILS=step, **ALL)
    release.assert_as_before()
    assert (release.steps.count("promote") > 0) == (step == "promote"), "before it, there is nothing to go back from"
    assert ("remove" in release.steps) == (step != "package")


@pytest.mark.parametrize("to_all", [False, True], ids=["script", "group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_during_serve_stops_the_second_server(tmp_path: Path, number: signal.Signals, to_all: bool) -> None:
    """It runs on where only the command is ended that has started it."""
    release = Release(tmp_path, number, to_all=to_all, HOLD="serve", **ALL)
    release.assert_as_before()
    assert release.code == 128 + number and "benchmark" not in release.steps


@pytest.mark.parametrize("hold", [f"promote {NEW}", f"promoted {NEW}"])
@pytest.mark.parametrize("to_all", [False, True], ids=["script", "group"])
def test_a_signal_during_promote_goes_back(tmp_path: Path, hold: str, to_all: bool) -> None:
    release = Release(tmp_path, signal.SIGTERM, to_all=to_all, HOLD=hold, **ALL)
    release.assert_as_before()
    assert f"back to generation {OLD} of reviews" in release.stderr


@pytest.mark.parametrize("to_all", [False, True], ids=["script", "group"])
def test_further_signals_do_not_end_the_way_back(tmp_path: Path, to_all: bool) -> None:
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    release = Release(tmp_path, *signals, to_all=to_all, HOLD=f"promote {OLD}", CHECK="false", **ALL)
    release.assert_as_before()
    assert release.code == 1 and release.steps[-2:] == ["promote", "remove"]


def test_a_signal_during_package_removes_what_was_packaged(tmp_path: Path) -> None:
    release = Release(tmp_path, signal.SIGTERM, HOLD="package", **ALL)
    release.assert_as_before()
    assert release.code == 143 and release.steps == ["package", "remove"]


def test_a_second_server_of_somebody_else_is_not_stopped(tmp_path: Path) -> None:
    (tmp_path / "second").write_text("/theirs\n")
    release = Release(tmp_path, FAILS="serve", **ALL)
    assert release.code == 1 and (tmp_path / "second").read_text() == "/theirs\n"


def test_only_the_generation_that_was_measured_is_promoted(tmp_path: Path) -> None:
    (tmp_path / "staged").mkdir()
    staged = Release(tmp_path / "staged", STAGED=OLD, **ALL)
    assert f"the second server does not serve generation {NEW}" in staged.stderr and "benchmark" not in staged.steps
    staged.assert_as_before()
    again = Release(tmp_path, INTRUDER=LATER, **ALL)
    assert "another generation of reviews was packaged or promoted meanwhile" in again.stderr and again.code == 1
    assert "promote" not in again.steps and (again.answering, again.current) == (OLD, LATER), "what somebody else chose stays"


def test_a_check_that_fails_is_rolled_back(tmp_path: Path) -> None:
    release = Release(tmp_path, CHECK='grep -q 20260102 "$HERE/answering" && touch "$HERE/asked" && false')
    release.assert_as_before()
    assert release.code == 1 and (tmp_path / "asked").exists(), "the new generation answered when the check ran"
    assert "release failed at: check" in release.stderr


def test_nothing_begins_without_a_server_or_with_half_a_pair_of_keys(tmp_path: Path) -> None:
    release = Release(tmp_path, NAME="other")
    assert release.code == 1 and "no server at port 8000 answers for other" in release.stderr
    (tmp_path / "second_release").mkdir()
    second = Release(tmp_path / "second_release", KEY="key.pem")
    assert second.code == 2 and "KEY needs VERIFY_KEY" in second.stderr
    assert not release.steps and not second.steps
