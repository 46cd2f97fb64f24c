"""Where packages of both layouts lie in a repository, and that a generation replaces another safely."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.errors import ArtifactError
from serving.integrity import check_ensemble
from serving.layout import current_generation, generations, package_names, startup_models
from serving.leases import take_lease
from serving.model_names import callable_models, read_model_name
from serving.options import Layout, PackageOptions
from serving.packages import find_packages
from serving.probe import ask, check_answers, find_probes
from serving.removal import remove_model
from serving.repository import package
from serving.served_view import open_view
from serving.server import TritonServer
from serving.server_record import Running
from tests.helpers.packages import entries_of, generation_of, write_package
from tests.helpers.servers import serve_options

SWITCHES: list[tuple[Layout, Layout]] = [("ensemble", "fused"), ("fused", "ensemble"), ("ensemble", "ensemble")]
STAMP = "20260102030405"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with a model of another tool whose folder has entries such as ours."""
    theirs = tmp_path / "models" / "theirs"
    (theirs / STAMP).mkdir(parents=True)
    (theirs / "config.pbtxt").write_text(f"version_policy {{ specific {{ versions: {STAMP} }} }}", encoding="utf-8")
    return tmp_path / "models"


@contextlib.contextmanager
def lease(models: Path) -> Iterator[str]:
    """Hold the current generation of x, as a server does; yield it."""
    generation = generation_of(models, "x")
    descriptor = take_lease(models / "x" / generation)
    assert descriptor is not None
    yield generation
    os.close(descriptor)


def entries(models: Path) -> list[str]:
    return sorted(entry.name for entry in models.iterdir() if entry.name != "theirs")


def entries_in(layout: Layout, generation: str) -> list[str]:
    return ["x"] if layout == "fused" else entries_of("x", generation)


def assert_loadable(models: Path) -> None:
    """Triton finds a configuration and a version in every entry, and no entry is a link."""
    for name in entries(models):
        assert (models / name / "config.pbtxt").is_file(), name
        assert (models / name / (current_generation(models, name) or "1")).is_dir(), name
    assert not [path for path in models.rglob("*") if path.is_symlink()]


def assert_packaged(models: Path, layout: Layout) -> None:
    assert package_names(models) == ["x"]
    found = find_packages(models)
    assert (list(found.ensembles), found.damaged, found.orphans) == (["x"], {}, ())
    assert found.ensembles["x"].manifest.layout == layout
    assert set(entries(models)) >= set(entries_in(layout, generation_of(models, "x")))
    assert_loadable(models)


def test_a_single_model_lies_in_its_own_folder(models: Path) -> None:
    first = write_package(models, "x", layout="fused")
    assert_packaged(models, "fused")
    assert sorted(entry.name for entry in (models / "x").iterdir()) == [first, "config.pbtxt", "warmup"]
    assert sorted(entry.name for entry in (models / "x" / first).iterdir()) == ["config.pbtxt", "manifest.json", "model"]
    assert (models / "x" / "warmup" / first / "short").is_file()
    (probe,) = find_probes(models)
    assert (probe.ensemble, probe.models) == ("x", ("x",))
    second = write_package(models, "x", layout="fused")
    assert_packaged(models, "fused")
    assert first < second and generations(models, "x") == [second]
    assert [entry.name for entry in (models / "x" / "warmup").iterdir()] == [second]


def test_the_steps_of_an_ensemble_have_the_generation_in_their_names(models: Path) -> None:
    generation = write_package(models, "x")
    assert_packaged(models, "ensemble")
    assert entries(models) == ["x", *(f"x.{generation}{suffix}" for suffix in ("", "_model", "_postprocess", "_preprocess"))]
    manifest = models / "x" / generation / "manifest.json"
    assert manifest.read_bytes() == (models / f"x.{generation}" / "1" / "manifest.json").read_bytes()
    (probe,) = find_probes(models)
    assert probe.models == tuple(f"x.{generation}_{step}" for step in ("preprocess", "model", "postprocess"))
    assert startup_models(models) == ["theirs", "x"], "an ensemble loads its steps"


@pytest.mark.parametrize(("before", "after"), SWITCHES)
def test_one_generation_replaces_another(models: Path, before: Layout, after: Layout) -> None:
    write_package(models, "x", layout=before)
    generation = write_package(models, "x", layout=after)
    assert_packaged(models, after)
    assert entries(models) == entries_in(after, generation)
    assert [path.name for path in models.parent.iterdir()] == ["models"]


@pytest.mark.parametrize(("before", "after"), SWITCHES)
def test_what_a_server_holds_stays_until_it_is_released(models: Path, before: Layout, after: Layout) -> None:
    write_package(models, "x", layout=before)
    with lease(models) as held:
        for layout in (after, before, after):
            write_package(models, "x", layout=layout)
            assert_packaged(models, layout)
            assert_complete(models, held)
        with pytest.raises(ArtifactError, match=f"a server uses .*/x/{held}"):
            remove_model(models, "x", servers=[])
    write_package(models, "x", layout=after)
    assert generations(models, "x") == [generation_of(models, "x")]


def test_older_generations_stay_until_there_are_too_many(models: Path) -> None:
    written = [write_package(models, "x", keep=3) for _ in range(5)]
    assert generations(models, "x") == written[2:]
    assert entries(models) == sorted({*(entry for generation in written[2:] for entry in entries_of("x", generation))})
    assert written == sorted(set(written)), "each is later than the one before, also within a second"


def assert_complete(models: Path, generation: str) -> None:
    """No file of a generation is missing."""
    manifest = json.loads((models / "x" / generation / "manifest.json").read_bytes())
    assert manifest["files"] and all((models / file).is_file() for file in manifest["files"])


class StoppedError(BaseException):
    """Ends a packaging, as a signal would."""


def stop_at(limit: int, monkeypatch: pytest.MonkeyPatch, before_each: Callable[[], None]) -> None:
    """Stop before the rename with that number."""
    left, own, rename = [limit], threading.get_ident(), Path.rename  # servers of other tests stop in threads meanwhile

    def stopping(path: Path, target: Path) -> Path:
        if threading.get_ident() == own:
            before_each()
            left[0] -= 1
            if left[0] < 0:
                raise StoppedError
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stopping)


@pytest.mark.parametrize("is_held", [True, False])
@pytest.mark.parametrize(("before", "after"), SWITCHES)
def test_every_change_of_a_switch_may_be_the_last(
    models: Path, before: Layout, after: Layout, is_held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that stands at any moment can be loaded, and x is in it. What a server holds is not removed after it."""
    switched: list[bool] = []
    for limit in range(100):
        shutil.rmtree(models)
        first = write_package(models, "x", layout=before)
        with lease(models) if is_held else contextlib.nullcontext(), monkeypatch.context() as patch:
            stop_at(limit, patch, lambda: assert_loadable(models))
            with contextlib.suppress(StoppedError):
                write_package(models, "x", layout=after)
                break
            patch.undo()
            switched.append(generation_of(models, "x") != first)
            assert_packages_stand(models)
            assert_complete(models, first if is_held else generation_of(models, "x"))
            write_package(models, "x", layout=after)
            assert_packaged(models, after)
            assert is_held is (models / "x" / first).is_dir()
    assert_packaged(models, after)
    assert limit >= 5 and not switched[0] and switched[-1] is not is_held


def assert_packages_stand(models: Path) -> None:
    """After an interruption, one generation or the other is served, and what is left of another is named."""
    assert_loadable(models)
    packages = find_packages(models)
    assert list(packages.ensembles) == ["x"]
    named = {path.name for orphan in packages.orphans for path in orphan.paths}
    known = set(generations(models, "x"))
    assert named == {name for name in entries(models) if (of := read_model_name(name)) and of.generation not in known}


# --- other models of the same names ---------------------------------------------------------------------------------------------


def test_a_folder_of_another_tool_is_not_ours(models: Path) -> None:
    write_package(models, "x", layout="fused")
    with pytest.raises(ArtifactError, match="theirs exists and was not packaged by tritonize"):
        write_package(models, "theirs", layout="fused")
    with pytest.raises(ArtifactError, match="holds no model theirs that tritonize packaged"):
        remove_model(models, "theirs", servers=[])
    assert package_names(models) == ["x"]


def test_names_like_those_of_steps_are_free(models: Path) -> None:
    (models / "x_model" / "1").mkdir(parents=True)
    write_package(models, "x")
    write_package(models, "x_preprocess", layout="fused")
    write_package(models, "x_postprocess")
    assert list(find_packages(models).ensembles) == ["x", "x_postprocess", "x_preprocess"]
    removed = {path.name for path in remove_model(models, "x", servers=[])}
    assert len(removed) == 5 and {"x_model", "x_preprocess"} <= set(entries(models))
    assert list(find_packages(models).ensembles) == ["x_postprocess", "x_preprocess"]


@pytest.mark.parametrize("name", [f"x.{STAMP}", f"x.{STAMP}_model", f"x.{STAMP}_preprocess"])
def test_the_name_of_a_model_of_a_generation_is_refused(models: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="ends like the model of a generation"):
        write_package(models, name)


def test_the_models_that_clients_may_call() -> None:
    of_x = ["x", f"x.{STAMP}", *(f"x.{STAMP}_{step}" for step in ("preprocess", "model", "postprocess"))]
    assert callable_models(["b", *of_x, "b_model", "theirs"]) == ["b", "b_model", "theirs", "x", f"x.{STAMP}"]


# --- damage -----------------------------------------------------------------------------------------------------------------------


def manifest_is_gone(home: Path) -> str:
    (home / generation_of(home.parent, "x") / "manifest.json").unlink()
    return "manifest.json is missing"


def another_version(home: Path) -> str:
    (home / "2").mkdir()
    return "x/2 was not written by tritonize package"


def configuration_is_gone(home: Path) -> str:
    (home / "config.pbtxt").unlink()
    return "x/config.pbtxt is missing"


def configuration_is_a_link(home: Path) -> str:
    (home / "config.pbtxt").unlink()
    (home / "config.pbtxt").symlink_to(f"{generations(home.parent, 'x')[0]}/config.pbtxt")
    return "x/config.pbtxt is a link"


def configuration_is_altered(home: Path) -> str:
    config = home / "config.pbtxt"
    config.write_text(config.read_text() + "max_batch_size: 3\n")
    return "x/config.pbtxt was altered: it is not that of its generation"


def file_is_altered(home: Path) -> str:
    (home / generation_of(home.parent, "x") / "config.pbtxt").write_text("altered", encoding="utf-8")
    return "config.pbtxt was altered"


def file_is_planted(home: Path) -> str:
    (home / generation_of(home.parent, "x") / "numpy.py").write_text("planted", encoding="utf-8")
    return "/numpy.py is not in the manifest"


def warmup_is_planted(home: Path) -> str:
    (home / "warmup" / "long").write_text("planted", encoding="utf-8")
    return "warmup/long was not written by tritonize package"


def home_is_a_link(home: Path) -> str:
    home.rename(home.parents[1] / "elsewhere")
    home.symlink_to("../elsewhere")
    return ""


def generation_is_a_link(home: Path) -> str:
    generation = home / generation_of(home.parent, "x")
    generation.rename(home.parents[1] / "elsewhere")
    generation.symlink_to("../../elsewhere")
    return f"x/{generation.name} is a link"


def generation_of_another_time(home: Path) -> str:
    generation = home / generation_of(home.parent, "x")
    config = (home / "config.pbtxt").read_text()
    generation.rename(home / STAMP)
    (home / "config.pbtxt").write_text(config.replace(generation.name, STAMP))
    return f"manifest.json belongs to the generation {generation.name}"


DAMAGE = [
    manifest_is_gone,
    another_version,
    configuration_is_gone,
    configuration_is_a_link,
    configuration_is_altered,
    file_is_altered,
    file_is_planted,
    warmup_is_planted,
    generation_is_a_link,
    generation_of_another_time,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_single_model_is_not_served(models: Path, damage: Callable[[Path], str]) -> None:
    write_package(models, "x", layout="fused")
    reason = damage(models / "x")
    found = find_packages(models)
    assert (list(found.ensembles), list(found.damaged), found.orphans) == ([], ["x"], ())
    with pytest.raises(ArtifactError, match=reason):
        check_ensemble(models, "x")


def test_a_package_that_is_a_link_is_not_ours(models: Path) -> None:
    write_package(models, "x", layout="fused")
    home_is_a_link(models / "x")
    assert package_names(models) == []
    with pytest.raises(ArtifactError, match="x exists and was not packaged by tritonize"):
        write_package(models, "x", layout="fused")


def test_a_single_model_is_removed_and_others_stay(models: Path) -> None:
    (models / "x_model" / "1").mkdir(parents=True)
    write_package(models, "x", layout="fused")
    with open_view(models) as view:
        server = Running(pid=1, started=0, http_port=8000, repository=str(models), ready=True, served=str(view.folder))
        with pytest.raises(ArtifactError, match="x is served at HTTP port 8000"):
            remove_model(models, "x", servers=[server])
    assert remove_model(models, "x", servers=[]) == [models / "x"]
    assert entries(models) == ["x_model"] and {path.name for path in models.parent.iterdir()} == {"models"}


def test_a_package_of_an_earlier_version_is_named_and_replaced(models: Path) -> None:
    """They had symbolic links into the folder of the generation."""
    for home, name in (("x_model", "x"), ("y", "y")):
        (models / home / "generations" / "0123456789ab" / name).mkdir(parents=True)
        (models / home / "current").symlink_to("generations/0123456789ab")
    for model in ("x", "x_preprocess", "x_postprocess"):
        (models / model).symlink_to(f"x_model/current/{model}")
    found = find_packages(models)
    assert (list(found.ensembles), sorted(found.damaged), found.orphans) == ([], ["x", "y"], ())
    assert found.damaged["x"].message.endswith("x was packaged by an earlier version of tritonize")
    assert found.damaged["x"].hint == "package it again with: tritonize package --name x"
    generation = write_package(models, "x")
    assert remove_model(models, "y", servers=[]) == [models / "y"]
    assert_packaged(models, "ensemble")
    assert entries(models) == entries_in("ensemble", generation)


# --- servers ----------------------------------------------------------------------------------------------------------------------


def test_a_running_server_is_not_disturbed(repository: Path, bundle: Path) -> None:
    """It reads its package at any moment and restarts with it, whatever layouts follow."""
    ways = {"bundle": bundle, "repository": repository, "name": "one", "precision": "int8", "device": "cpu", "batching": "off"}
    package(PackageOptions(layout="fused", **ways))
    with open_view(repository) as view:
        assert [entry.name for entry in sorted(view.folder.glob("one*"))] == ["one"]
        for layout in ("ensemble", "fused"):
            package(PackageOptions(layout=layout, **ways, keep=1))
            view.refresh()
            assert view.left_out == {} and find_probes(view.folder)[0].models == ("one",)
        (line,) = view.differences()
        assert "a newer one is packaged" in line


@pytest.mark.server
@pytest.mark.long
def test_triton_serves_a_plain_copy_of_a_repository(repository: Path, bundle: Path, tmp_path: Path) -> None:
    """With older generations, and with packages of both layouts."""
    ways = {"bundle": bundle, "repository": repository, "precision": "fp32", "device": "cpu", "batching": "off"}
    package(PackageOptions(name="one", layout="fused", **ways))
    package(PackageOptions(name="two", layout="fused", **ways))
    package(PackageOptions(name="two", layout="fused", **ways, force=True))
    assert [len(generations(repository, name)) for name in ("one", "other", "two")] == [2, 1, 2]
    assert not [path for path in repository.rglob("*") if path.is_symlink()]
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", repository, copy], check=True)
    with TritonServer(serve_options(copy), log=lambda _: None) as running:
        running.wait_until_ready()
        for probe in find_probes(copy):
            check_answers(probe, ask(running.address.http, probe, timeout=30))
        assert running.traffic().answered.keys() == {"one", "other", "two"}
        running.drain()
