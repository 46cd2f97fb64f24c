"""What is found in a model repository: ensembles, damaged ones, and what belongs to no ensemble."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.packages import find_packages
from tests.helpers.packages import generation_of, step


def test_ensembles_are_found_with_what_they_are(repository: Path) -> None:
    (repository / "theirs" / "1").mkdir(parents=True)
    (repository / "theirs_model" / "1").mkdir(parents=True)
    (repository / "alone_preprocess" / "1").mkdir(parents=True)
    found = find_packages(repository)
    assert list(found.ensembles) == ["one", "other"]
    assert found.ensembles["one"].generation == repository / "one" / generation_of(repository, "one")
    assert found.ensembles["one"].manifest.precision == "fp32"
    assert (found.damaged, found.orphans) == ({}, ()), "models of other tools are not looked at"


def test_a_repository_that_is_not_there_is_empty(tmp_path: Path) -> None:
    found = find_packages(tmp_path / "nothing")
    assert (found.ensembles, found.damaged, found.orphans) == ({}, {}, ())


def test_a_damaged_ensemble_is_found_by_its_files_or_by_its_folders(repository: Path) -> None:
    (step(repository, "one", "model") / "1" / "model.onnx").write_bytes(b"altered")
    shutil.rmtree(step(repository, "other", "postprocess"))
    found, quick = find_packages(repository), find_packages(repository, files=False)
    assert (list(found.ensembles), list(quick.ensembles)) == ([], ["one"])
    assert "_model/1/model.onnx was altered" in found.damaged["one"].message
    assert "_postprocess is missing" in found.damaged["other"].message
    assert "tritonize package --name other --force" in quick.damaged["other"].hint
    assert found.orphans == quick.orphans == ()


def config_is_gone(repository: Path) -> None:
    (repository / "one" / "config.pbtxt").unlink()


def manifest_is_gone(repository: Path) -> None:
    (repository / "one" / generation_of(repository, "one") / "manifest.json").unlink()


def step_is_gone(repository: Path) -> None:
    shutil.rmtree(step(repository, "one", "model"))


def unreadable(repository: Path) -> None:
    folder = step(repository, "one", "preprocess")
    shutil.rmtree(folder)
    folder.write_text("one: a file in place of a folder")


@pytest.mark.parametrize("damage", [config_is_gone, manifest_is_gone, step_is_gone, unreadable])
def test_what_is_half_removed_is_damaged(repository: Path, damage: Callable[[Path], None]) -> None:
    damage(repository)
    found = find_packages(repository)
    assert (list(found.ensembles), list(found.damaged), found.orphans) == (["other"], ["one"], ())
    assert "one" in found.damaged["one"].message and "\n" not in found.damaged["one"].message


def test_models_without_their_generation_are_orphans(repository: Path) -> None:
    generation = generation_of(repository, "one")
    shutil.rmtree(repository / "one")
    (orphan,) = find_packages(repository).orphans
    names = [f"one.{generation}{suffix}" for suffix in ("", "_model", "_postprocess", "_preprocess")]
    assert (orphan.name, [path.name for path in orphan.paths]) == ("one", names)
    assert orphan.problem.endswith(f"{', '.join(names)} belong to a generation of one that is missing")
    assert orphan.hint == "package it again, or remove it with: tritonize remove one"
    for path in orphan.paths[1:]:
        shutil.rmtree(path)
    (orphan,) = find_packages(repository).orphans
    assert orphan.problem.endswith(f"one.{generation} belongs to a generation of one that is missing")


def test_what_an_interrupted_packaging_left_is_found(repository: Path, tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = [tmp_path / f".models-one.{ended.pid}.abc.partial", repository / f".models-a-b.{ended.pid}.abc.partial"]
    others = [tmp_path / f".models-other.{os.getpid()}.abc.partial", tmp_path / f".else-one.{ended.pid}.abc.partial"]
    for folder in (*left, *others):
        folder.mkdir()
    found = find_packages(repository).orphans
    assert [(orphan.name, orphan.paths) for orphan in found] == [("one", (left[0],)), ("a-b", (left[1],))]
    assert "was left by a packaging of one that was interrupted" in found[0].problem and str(left[0]) in found[0].hint
