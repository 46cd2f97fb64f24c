"""Errors of a full disk name what could not be written. ``/dev/full`` is a disk that is full."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from export.cli import main
from export.recipe import write_recipe
from serving.artifact import publish
from serving.options import PackageOptions
from serving.repository import package
from serving.writing import describe, writing
from tests.helpers.disk import full_disk
from tests.helpers.surroundings import port_options

FULL = Path("/dev/full")
REMEDY = "(free space on its disk, and run the same command again)"


def test_the_file_is_added_to_an_error_that_names_none() -> None:
    with pytest.raises(OSError, match="No space left on device") as bare:
        FULL.write_text("x")
    assert bare.value.filename is None  # what this module is for
    with pytest.raises(OSError, match="No space left on device") as caught, writing(Path("answers.jsonl")):
        FULL.write_text("x")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "answers.jsonl")
    assert describe(caught.value) == f"cannot write answers.jsonl: No space left on device {REMEDY}"


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing, writing(tmp_path / "other"):
        (tmp_path / "absent").read_text()
    assert describe(missing.value) == f"{tmp_path / 'absent'} No such file or directory"
    with pytest.raises(ConnectionResetError) as reset, writing(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    assert describe(reset.value) == "Connection reset by peer"
    assert describe(OSError("no number")) == "no number"
    inner = OSError(errno.ENOSPC, "No space left on device", "inner")
    with pytest.raises(OSError, match="inner") as named, writing(tmp_path):
        raise inner
    assert named.value is inner


def test_an_artifact_is_named_and_nothing_of_it_stays(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large") as caught, full_disk(1000), publish(tmp_path / "artifact") as folder:
        (folder / "large").write_bytes(b"x" * 2000)
    assert caught.value.filename == str(tmp_path / "artifact")
    assert not list(tmp_path.iterdir())


def test_a_recipe_is_named_and_stays(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("old")
    with pytest.raises(OSError, match="File too large") as caught, full_disk(1000):
        write_recipe(recipe, "x" * 2000)
    assert caught.value.filename == str(recipe)
    assert recipe.read_text() == "old"


def test_a_repository_is_named_and_stays(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = tmp_path / "repository"
    package(PackageOptions(bundle=bundle, repository=repository, name="tiny", precision="fp32", device="cpu"))
    before = sorted(repository.rglob("*"))
    with full_disk():
        given = ["--bundle", str(bundle), "--repository", str(repository), "--name", "tiny", "--precision", "fp32", "--force"]
        assert main(["package", *given, "--device", "cpu"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"error: cannot write {repository / 'tiny'}: File too large {REMEDY}"
    assert sorted(repository.rglob("*")) == before


def test_standard_output_may_be_what_is_full() -> None:
    with FULL.open("w") as full:
        command = [sys.executable, "-m", "export.cli", "doctor", "--json", *port_options()]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: cannot write standard output or a temporary file: No space left on device {REMEDY}\n"
