"""What is found in a model repository: ensembles, damaged ones, and what belongs to no ensemble."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.packages import find_packages


def test_ensembles_are_found_with_what_they_are(repository: Path) -> None:
    (repository / "theirs" / "1").mkdir(parents=True)
    (repository / "theirs_model" / "1").mkdir(parents=True)
    (repository / "alone_preprocess" / "1").mkdir(parents=True)
    found = find_packages(repository)
    assert list(found.ensembles) == ["one", "other"]
    assert found.ensembles["one"].generation == (repository / "one_model" / "current").resolve()
    assert found.ensembles["one"].manifest.precision == "fp32"
    assert (found.damaged, found.orphans) == ({}, ()), "models of other tools are not looked at"


def test_a_repository_that_is_not_there_is_empty(tmp_path: Path) -> None:
    found = find_packages(tmp_path / "nothing")
    assert (found.ensembles, found.damaged, found.orphans) == ({}, {}, ())


def test_a_damaged_ensemble_is_found_by_its_files_or_by_its_links(repository: Path) -> None:
    (repository / "one_model" / "1" / "model.onnx").write_bytes(b"altered")
    (repository / "other_postprocess").unlink()
    found, quick = find_packages(repository), find_packages(repository, files=False)
    assert (list(found.ensembles), list(quick.ensembles)) == ([], ["one"])
    assert "one_model/1/model.onnx was altered" in found.damaged["one"].message
    assert "other_postprocess is missing" in found.damaged["other"].message
    assert "tritonize package --name other --force" in quick.damaged["other"].hint
    assert found.orphans == quick.orphans == ()


def home_is_gone(repository: Path) -> None:
    shutil.rmtree(repository / "one_model")


def generations_are_gone(repository: Path) -> None:
    shutil.rmtree(repository / "one_model" / "generations")


def current_is_gone(repository: Path) -> None:
    (repository / "one_model" / "current").unlink()


def another_is_in_its_place(repository: Path) -> None:
    (repository / "one").unlink()
    (repository / "one" / "1").mkdir(parents=True)


def unreadable(repository: Path) -> None:
    generation = (repository / "one_model" / "current").resolve()
    shutil.rmtree(generation / "one_preprocess")
    (generation / "one_preprocess").write_text("a file in place of a folder")


@pytest.mark.parametrize("damage", [home_is_gone, generations_are_gone, current_is_gone, another_is_in_its_place, unreadable])
def test_what_is_half_removed_is_damaged(repository: Path, damage: Callable[[Path], None]) -> None:
    damage(repository)
    found = find_packages(repository)
    assert (list(found.ensembles), list(found.damaged), found.orphans) == (["other"], ["one"], ())
    assert "one" in found.damaged["one"].message and "\n" not in found.damaged["one"].message


def test_steps_without_an_ensemble_are_orphans(repository: Path) -> None:
    (repository / "one").unlink()
    (orphan,) = find_packages(repository).orphans
    assert [path.name for path in orphan.paths] == ["one_model", "one_postprocess", "one_preprocess"]
    assert orphan.problem.endswith("one_model, one_postprocess, one_preprocess belong to the ensemble one, which is missing")
    assert orphan.hint == "package it again, or remove it with: tritonize remove one"


def test_a_single_step_is_an_orphan_also_as_a_copy(repository: Path) -> None:
    shutil.copytree(repository / "one_preprocess", repository / "copied_preprocess")
    for link in ("one", "one_postprocess"):
        (repository / link).unlink()
    shutil.rmtree(repository / "one_model")
    found = find_packages(repository).orphans
    assert [(orphan.name, [path.name for path in orphan.paths]) for orphan in found] == [
        ("copied", ["copied_preprocess"]),
        ("one", ["one_preprocess"]),
    ]
    assert "copied_preprocess belongs to the ensemble copied, which is missing" in found[0].problem


def test_a_home_that_lost_its_generations_is_an_orphan(repository: Path) -> None:
    for name in ("one", "one_preprocess", "one_postprocess", "one_model/current"):
        (repository / name).unlink()
    shutil.rmtree(repository / "one_model" / "generations")
    (orphan,) = find_packages(repository).orphans
    assert [path.name for path in orphan.paths] == ["one_model"]


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
