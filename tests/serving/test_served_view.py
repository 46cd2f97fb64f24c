"""A server serves what the repository held when it was started, whatever happens to the repository afterwards."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import served_view
from serving.errors import ArtifactError
from serving.layout import generations, package_entries
from serving.options import PackageOptions
from serving.packages import find_packages
from serving.probe import find_probes
from serving.repository import package
from serving.served_view import ServedView, open_view
from tests.helpers.packages import entries_of, generation_of, step, write_package


@pytest.fixture
def view(repository: Path) -> Iterator[ServedView]:
    with open_view(repository) as opened:
        yield opened


def repackage(bundle: Path, repository: Path, name: str = "one") -> None:
    package(PackageOptions(bundle=bundle, repository=repository, name=name, precision="int8", device="cpu", force=True, keep=1))


def generation(repository: Path, name: str = "one") -> Path:
    return repository / name / generation_of(repository, name)


def served(view: ServedView) -> dict[str, Path]:
    """What Triton reads by the names of its models: of a package, the folder of the generation."""
    entries = {entry.name: entry for entry in view.folder.iterdir()}
    return {
        name: (entry if entry.is_symlink() else entry / generation_of(view.folder, name)).resolve()
        for name, entry in entries.items()
    }


def models_of(name: str, folder: Path) -> dict[str, Path]:
    """What is served of the generation in a folder."""
    repository = folder.parents[1]
    names = entries_of(name, folder.name)
    return {model: folder if model == name else repository / model for model in names}


def test_a_folder_without_a_model_is_left_out(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("notes", "gone_preprocess/1x", "theirs/1"):
        (repository / folder).mkdir(parents=True)
    with open_view(repository) as opened:
        assert {"notes", "gone_preprocess", "theirs"} & set(served(opened)) == {"theirs"}
    assert caplog.text.count("it holds no model") == 2


def test_what_is_packaged_later_is_not_served(view: ServedView, repository: Path, bundle: Path) -> None:
    first = generation(repository)
    expected = models_of("one", first) | models_of("other", generation(repository, "other"))
    assert served(view) == expected
    repackage(bundle, repository)
    repackage(bundle, repository)
    assert generation(repository) != first
    assert len(generations(repository, "one")) == 2, "that which is served, and the newest"
    view.refresh()
    assert served(view) == expected
    assert [probe.ensemble for probe in find_probes(view.folder)] == ["one", "other"]
    (line,) = view.differences()
    assert line.startswith("restarted with the package of one of 20") and f"({first.name}); a newer one is packaged" in line


def test_a_generation_is_removed_when_no_server_holds_it(repository: Path, bundle: Path) -> None:
    with open_view(repository):
        first = generation(repository)
        repackage(bundle, repository)
        assert first.exists()
    repackage(bundle, repository)
    assert generations(repository, "one") == [generation(repository).name]


def test_a_lease_ends_with_its_process_however_that_ends(repository: Path, bundle: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from serving.served_view import open_view\n"
        "with open_view(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    first = generation(repository)
    with subprocess.Popen([sys.executable, "-c", script, repository], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        repackage(bundle, repository)
        assert first.exists()
        holder.send_signal(signal.SIGKILL)
    repackage(bundle, repository)
    assert not first.exists()


def test_models_that_come_and_go_change_nothing(view: ServedView, repository: Path, bundle: Path) -> None:
    before = served(view)
    repackage(bundle, repository, "added")
    view.refresh()
    assert served(view) == before and view.left_out == {}
    (added,) = view.differences()
    assert added == "added was packaged since the start: load it with: tritonize load added"


def test_a_repository_that_is_another_one_by_now_changes_nothing(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(repository)
    with open_view(tmp_path / "link") as view:
        before = served(view)
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to(tmp_path)
        view.refresh()
        assert served(view) == before


def test_a_generation_that_was_deleted_is_left_out_and_named(
    view: ServedView, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = generation(repository)
    for entry in package_entries(repository, "one"):
        shutil.rmtree(entry)
    view.refresh()
    assert served(view) == models_of("other", generation(repository, "other"))
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.message.startswith(f"one is left out: {first}, the package of one that this server serves, was deleted (restart ")
    view.refresh()
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1, "it is told once"
    (removed,) = view.differences()
    assert "one was removed from the repository and is served until the server is stopped" in removed
    shutil.rmtree(repository / "other")
    with pytest.raises(ArtifactError, match=r"2 models cannot be served: one: .* was deleted; other: .* was deleted"):
        view.refresh()


def test_a_repository_that_is_gone_is_told(view: ServedView, repository: Path) -> None:
    shutil.rmtree(repository)
    with pytest.raises(ArtifactError, match=r"2 models cannot be served: .* was deleted"):
        view.refresh()
    assert [line.partition("; ")[2] for line in view.differences()] == [
        f"{name} was removed from the repository and is served until the server is stopped" for name in ("one", "other")
    ]


def test_a_file_that_was_altered_is_left_out_until_it_is_as_it_was(view: ServedView, repository: Path) -> None:
    path = step(repository, "one", "preprocess") / "1" / "settings.json"
    content = path.read_bytes()
    path.write_bytes(b"{}")
    view.refresh()
    assert "_preprocess/1/settings.json was altered" in view.left_out["one"].message
    assert view.left_out["one"].hint.startswith("package it again with: tritonize package --name one --force; then restart")
    assert not view.folder.joinpath("one").exists()
    path.write_bytes(content)
    view.refresh()
    assert view.left_out == {} and "one" in served(view)


def test_a_damaged_ensemble_is_left_out_from_the_start(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    (step(repository, "other", "model") / "1" / "model.onnx").write_bytes(b"")
    gone = step(repository, "one", "postprocess").name.replace("one", "gone")
    shutil.copytree(step(repository, "one", "postprocess"), repository / gone)
    with open_view(repository) as view:
        assert served(view) == models_of("one", generation(repository))
        assert list(view.left_out) == ["other"]
    error = next(record.message for record in caplog.records if record.levelno == logging.ERROR)
    assert error.startswith("other is left out: ") and "_model/1/model.onnx was altered" in error and "--name other" in error
    warning = next(record.message for record in caplog.records if record.levelno == logging.WARNING)
    assert f"{gone} belongs to a generation of gone" in warning and "tritonize remove gone" in warning
    with pytest.raises(ArtifactError, match=r"_model/1/model\.onnx was altered"), open_view(repository, strict=True):
        pass


def test_a_strict_server_does_not_restart_with_less(repository: Path) -> None:
    with open_view(repository, strict=True) as view:
        shutil.rmtree(repository / "one")
        with pytest.raises(ArtifactError, match="the package of one that this server serves, was deleted"):
            view.refresh()


def test_nothing_that_can_be_served_is_an_error(repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("one", "other"):
        (generation(repository, name) / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"2 models cannot be served: one: .*; other: "), open_view(repository):
        pass
    shutil.copytree(step(repository, "one", "model"), tmp_path / "empty" / "x.20260102030405_model")
    with pytest.raises(ArtifactError, match="empty holds no packaged ensemble"), open_view(tmp_path / "empty"):
        pass
    assert "x.20260102030405_model belongs to a generation of x that is missing" in caplog.text


def test_models_of_other_tools_are_served_where_they_are(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("theirs", "theirs_model", ".hidden"):
        (repository / name / "1").mkdir(parents=True)
    (repository / "notes.txt").touch()
    with open_view(repository) as view:
        others = {name: path for name, path in served(view).items() if name.startswith(("theirs", ".", "notes"))}
        assert others == {name: repository / name for name in ("theirs", "theirs_model")}
        (repository / "theirs").rename(repository / "moved")
        view.refresh()
        assert "theirs" not in served(view) and "moved" not in served(view)
    assert f"{repository / 'theirs'} is not there any more: the model is left out" in caplog.text


def test_a_generation_that_is_replaced_before_it_is_held_is_found_anew(
    repository: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found_and_replaced(folder: Path, **settings: Any) -> object:
        found = find_packages(folder, **settings)
        repackage(bundle, repository)
        return found

    monkeypatch.setattr(served_view, "find_packages", found_and_replaced)
    with open_view(repository) as view:
        assert served(view)["one"] == generation(repository)


def test_nothing_stays_of_a_view(repository: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with contextlib.suppress(ZeroDivisionError), open_view(repository) as view:
        folder = view.folder
        raise ZeroDivisionError
    assert not folder.exists()
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208


def test_only_what_a_manifest_covers_is_linked(tmp_path: Path) -> None:
    """A single model has no model of its own for each generation: a planted one is neither read nor written."""
    models = tmp_path / "models"
    for turn in range(2):
        generation = write_package(models, "one", layout="fused", keep=2)
        for planted in (models / f"one.{generation}" / "2", models / f"one.{generation}_model" / "1"):
            planted.mkdir(parents=True)
            (planted / "model.py").touch()
        if turn == 0:
            stack = contextlib.ExitStack()
            view = stack.enter_context(open_view(models))
    with stack:
        assert sorted(entry.name for entry in view.folder.iterdir()) == ["one"]
        trial = view.folder / view.add(find_packages(models).ensembles["one"].manifest)
        assert sorted(entry.name for entry in trial.iterdir()) == ["1", "config.pbtxt", "warmup"]
        assert sorted(entry.name for entry in view.folder.iterdir()) == ["one", trial.name]
        assert [entry.name for entry in (models / trial.name).iterdir()] == ["2"], "nothing is written into the repository"
        view.drop("one", generation)
        assert not trial.exists() and not (view.folder / "one" / "warmup" / generation).exists()
        assert (view.folder / "one" / "warmup" / generation_of(view.folder, "one")).is_dir()


def test_what_was_loaded_beside_is_let_go_at_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = tmp_path / "models"
    first = write_package(models, "one")
    with open_view(models) as view:
        second = write_package(models, "one", keep=2)
        view.add(find_packages(models).ensembles["one"].manifest)
        view.refresh()
        assert view.generation_of("one") == first and not (view.folder / f"one.{second}").exists()
        assert f"one.{second} is not loaded after the restart: load it again with: tritonize load one {second}" in caplog.text
        write_package(models, "one")
        assert second not in generations(models, "one") and first in generations(models, "one")
