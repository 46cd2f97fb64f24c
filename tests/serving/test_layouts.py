"""Where packages of both layouts lie in a repository, and that one replaces the other safely."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving import placement
from serving.errors import ArtifactError
from serving.integrity import check_ensemble
from serving.layout import CURRENT, callable_models, model_home, package_names
from serving.leases import descriptor_path, take_lease
from serving.options import Layout, PackageOptions
from serving.packages import find_packages
from serving.probe import ask, check_answers, find_probes
from serving.removal import remove_model
from serving.repository import package
from serving.served_view import open_view
from serving.server import TritonServer
from serving.server_record import Running
from tests.helpers.packages import write_package
from tests.helpers.servers import serve_options

ENTRIES = {"ensemble": ["x", "x_model", "x_postprocess", "x_preprocess"], "fused": ["x"]}
SWITCHES: list[tuple[Layout, Layout]] = [("ensemble", "fused"), ("fused", "ensemble")]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with a model of another tool whose folder has entries such as ours."""
    theirs = tmp_path / "models" / "theirs"
    (theirs / "3").mkdir(parents=True)
    (theirs / "generations" / "one").mkdir(parents=True)
    (theirs / CURRENT).symlink_to("3")
    return tmp_path / "models"


@contextlib.contextmanager
def lease(models: Path) -> Iterator[Path]:
    """Hold the current generation of x, as a server does; yield the path by which the server reads it."""
    descriptor = take_lease((model_home(models, "x") / CURRENT).resolve())
    assert descriptor is not None
    yield descriptor_path(descriptor)
    os.close(descriptor)


def entries(models: Path) -> list[str]:
    return sorted(entry.name for entry in models.iterdir() if entry.name != "theirs")


def assert_loadable(models: Path) -> None:
    """Triton finds a configuration and a version in every entry."""
    for name in entries(models):
        assert (models / name / "config.pbtxt").is_file() and (models / name / "1").is_dir(), name


def assert_packaged(models: Path, layout: Layout) -> None:
    assert (entries(models), package_names(models)) == (ENTRIES[layout], ["x"])
    found = find_packages(models)
    assert (list(found.ensembles), found.damaged, found.orphans) == (["x"], {}, ())
    assert found.ensembles["x"].manifest.layout == layout
    assert_loadable(models)


def test_a_single_model_lies_in_its_own_folder(models: Path) -> None:
    write_package(models, "x", layout="fused")
    assert_packaged(models, "fused")
    links = {entry.name: str(entry.readlink()) for entry in (models / "x").iterdir() if entry.is_symlink()}
    target = links.pop(CURRENT)
    assert links == {entry: f"current/x/{entry}" for entry in ("config.pbtxt", "1", "warmup", "manifest.json")}
    assert sorted(entry.name for entry in (models / "x" / target).iterdir()) == ["manifest.json", "x"]
    assert json.loads((models / "x" / "manifest.json").read_bytes())["layout"] == "fused"
    (probe,) = find_probes(models)
    assert (probe.ensemble, probe.models) == ("x", ("x",))
    write_package(models, "x", layout="fused")
    assert_packaged(models, "fused")
    assert len(list((models / "x" / "generations").iterdir())) == 1


@pytest.mark.parametrize(("before", "after"), SWITCHES)
def test_one_layout_replaces_the_other(models: Path, before: Layout, after: Layout) -> None:
    write_package(models, "x", layout=before)
    write_package(models, "x", layout=after)
    assert_packaged(models, after)
    assert len(list((model_home(models, "x") / "generations").iterdir())) == 1
    assert [path.name for path in models.parent.iterdir()] == ["models"]


@pytest.mark.parametrize(("before", "after"), SWITCHES)
def test_what_a_server_holds_stays_until_it_is_released(models: Path, before: Layout, after: Layout) -> None:
    write_package(models, "x", layout=before)
    with lease(models) as held:
        for layout in (after, before, after):
            write_package(models, "x", layout=layout)
            assert_packaged(models, layout)
            assert check_layout(held) == before
        with pytest.raises(ArtifactError, match=r"a server uses .*/generations/.*/generations/"):
            remove_model(models, "x", servers=[])
    write_package(models, "x", layout=after)
    assert len(list((model_home(models, "x") / "generations").iterdir())) == 1


def check_layout(generation: Path) -> str:
    """The layout of a complete generation."""
    manifest = json.loads((generation / "manifest.json").read_bytes())
    assert manifest["files"] and all((generation / file).is_file() for file in manifest["files"])
    return str(manifest["layout"])


class StoppedError(BaseException):
    """Ends a packaging, as a signal would."""


def stop_at(limit: int, monkeypatch: pytest.MonkeyPatch, before_each: Callable[[], None]) -> None:
    """Stop before the change of the repository with that number."""
    left, own = [limit], threading.get_ident()  # servers of other tests stop in threads meanwhile

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def stopping(*arguments: object, **options: object) -> object:
            if threading.get_ident() != own:
                return original(*arguments, **options)
            before_each()
            left[0] -= 1
            if left[0] < 0:
                raise StoppedError
            return original(*arguments, **options)

        return stopping

    for name in ("rename", "symlink_to", "unlink"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    for name in ("exchange", "remove_earlier"):
        monkeypatch.setattr(placement, name, counted(getattr(placement, name)))


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize(("before", "after"), SWITCHES)
def test_every_change_of_a_switch_may_be_the_last(
    models: Path, before: Layout, after: Layout, can_exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that stands at any moment can be loaded, and x is in it, except between two renames where those are needed."""
    found: list[str] = []
    for limit in range(100):
        shutil.rmtree(models)
        write_package(models, "x", layout=before)
        with lease(models) as held, monkeypatch.context() as patch:
            if not can_exchange:
                patch.setattr(placement, "exchange", lambda *_: False)
            stop_at(limit, patch, lambda: assert_loadable(models))
            with contextlib.suppress(StoppedError):
                write_package(models, "x", layout=after)
                break
            patch.undo()
            found.append(stopped_at(models))
            assert check_layout(held) == before
            write_package(models, "x", layout=after)
            assert_packaged(models, after)
            assert check_layout(held) == before
    assert_packaged(models, after)
    assert limit >= 8 and {before, after} <= set(found)
    assert found.count("missing") == (0 if can_exchange else 1)


def stopped_at(models: Path) -> str:
    """The layout of x after an interruption, or that it is missing. What is left of another layout is named."""
    assert_loadable(models)
    packages = find_packages(models)
    named = {path.name for orphan in packages.orphans for path in orphan.paths}
    layout = packages.ensembles["x"].manifest.layout if "x" in packages.ensembles else None
    assert named == set(entries(models)) - set(() if layout is None else ENTRIES[layout])
    return layout or "missing"


def test_the_next_packaging_removes_what_is_left_although_nothing_else_changed(bundle: Path, repository: Path) -> None:
    ways = PackageOptions(bundle=bundle, repository=repository, name="one", precision="fp32", batching="off", device="cpu")
    fused = PackageOptions(**vars(ways) | {"layout": "fused"})
    shutil.copytree(repository, repository.parent / "before", symlinks=True)
    package(fused)
    for name in ("one_model", "one_preprocess"):
        (repository.parent / "before" / name).rename(repository / name)
    (orphan,) = find_packages(repository).orphans
    assert orphan.problem.endswith("one_preprocess, one_model belong to an earlier package of one")
    assert package(fused).unchanged
    assert find_packages(repository).orphans == () and not (repository / "one_model").exists()


# --- other models of the same names ---------------------------------------------------------------------------------------------


def test_a_folder_of_another_tool_is_not_ours(models: Path) -> None:
    write_package(models, "x", layout="fused")
    with pytest.raises(ArtifactError, match="theirs exists and was not packaged by tritonize"):
        write_package(models, "theirs", layout="fused")
    with pytest.raises(ArtifactError, match="holds no model theirs that tritonize packaged"):
        remove_model(models, "theirs", servers=[])
    assert package_names(models) == ["x"]


def test_a_single_model_needs_no_other_name(models: Path) -> None:
    (models / "x_model" / "1").mkdir(parents=True)
    (models / "x_model" / "config.pbtxt").write_text("theirs", encoding="utf-8")
    write_package(models, "x", layout="fused")
    write_package(models, "x_preprocess", layout="fused")
    assert list(find_packages(models).ensembles) == ["x", "x_preprocess"]
    for name, reason in (("x_model", "x_model exists and was not packaged"), ("x_preprocess", "belongs to the package x_pre")):
        with pytest.raises(ArtifactError, match=reason):
            write_package(models, "x", layout="ensemble")
        shutil.rmtree(models / name)
    write_package(models, "x", layout="ensemble")
    assert_packaged(models, "ensemble")


def test_a_single_model_called_like_a_step_is_a_package_of_its_own(models: Path) -> None:
    write_package(models, "x_model", layout="fused")
    with pytest.raises(ArtifactError, match="x_model belongs to the package x_model"):
        write_package(models, "x")
    write_package(models, "x", layout="fused")
    found = find_packages(models)
    assert (list(found.ensembles), found.damaged, found.orphans) == (["x", "x_model"], {}, ())
    assert [path.name for path in remove_model(models, "x", servers=[])] == ["x"]
    assert list(find_packages(models).ensembles) == ["x_model"]


def test_the_models_that_clients_may_call() -> None:
    assert callable_models(["b", *ENTRIES["ensemble"], "b_model", "theirs"]) == ["b", "b_model", "theirs", "x"]


# --- damage -----------------------------------------------------------------------------------------------------------------------


def manifest_link_is_gone(home: Path) -> str:
    (home / "manifest.json").unlink()
    return "x/manifest.json is missing"


def another_version(home: Path) -> str:
    (home / "2").mkdir()
    return "x/2 was not written by tritonize package"


def current_is_gone(home: Path) -> str:
    (home / CURRENT).unlink()
    return "x/current is missing"


def configuration_is_another(home: Path) -> str:
    (home / "config.pbtxt").unlink()
    (home / "config.pbtxt").symlink_to("../theirs/config.pbtxt")
    return "x/config.pbtxt is not the link to current/x/config.pbtxt that it must be"


def generations_elsewhere(home: Path) -> str:
    (home / "generations").rename(home.parents[1] / "elsewhere")
    (home / "generations").symlink_to("../../elsewhere")
    return "x/generations is a link"


def file_is_altered(home: Path) -> str:
    (home / CURRENT / "x" / "config.pbtxt").write_text("altered", encoding="utf-8")
    return "x/config.pbtxt was altered"


def file_is_planted(home: Path) -> str:
    (home / "1" / "numpy.py").write_text("planted", encoding="utf-8")
    return "x/1/numpy.py is not in the manifest"


def home_is_a_link(home: Path) -> str:
    home.rename(home.parents[1] / "elsewhere")
    home.symlink_to("../elsewhere")
    return ""


def generation_of_an_ensemble(home: Path) -> str:
    write_package(home.parents[1] / "others", "x")
    current = (home / CURRENT).resolve()
    shutil.rmtree(current)
    shutil.copytree(home.parents[1] / "others" / "x_model" / CURRENT, current, symlinks=True)
    return "x is not the place of a package with the layout ensemble"


DAMAGE = [
    manifest_link_is_gone,
    another_version,
    current_is_gone,
    configuration_is_another,
    generations_elsewhere,
    file_is_altered,
    file_is_planted,
    generation_of_an_ensemble,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_single_model_is_not_served(models: Path, damage: Callable[[Path], str]) -> None:
    write_package(models, "x", layout="fused")
    reason = damage(models / "x")
    found = find_packages(models)
    assert (list(found.ensembles), list(found.damaged), found.orphans) == ([], ["x"], ())
    with pytest.raises(ArtifactError, match=reason):
        check_ensemble(models, "x")


def test_a_single_model_that_is_a_link_is_not_ours(models: Path) -> None:
    write_package(models, "x", layout="fused")
    home_is_a_link(models / "x")
    assert package_names(models) == []
    with pytest.raises(ArtifactError, match="x exists and was not packaged by tritonize"):
        write_package(models, "x", layout="fused")


def test_a_single_model_is_removed_and_others_stay(models: Path, tmp_path: Path) -> None:
    (models / "x_model" / "1").mkdir(parents=True)
    write_package(models, "x", layout="fused")
    view = tmp_path / "view"
    view.mkdir()
    (view / "x").symlink_to((models / "x" / CURRENT / "x").resolve())
    server = Running(pid=1, started=0, http_port=8000, repository=str(models), ready=True, served=str(view))
    with pytest.raises(ArtifactError, match="x is served at HTTP port 8000"):
        remove_model(models, "x", servers=[server])
    assert remove_model(models, "x", servers=[]) == [models / "x"]
    assert entries(models) == ["x_model"] and {path.name for path in tmp_path.iterdir()} == {"models", "view"}


# --- servers ----------------------------------------------------------------------------------------------------------------------


def test_a_running_server_is_not_disturbed(repository: Path, bundle: Path) -> None:
    """It reads its package at any moment and restarts with it, whatever layouts follow."""
    ways = {"bundle": bundle, "repository": repository, "name": "one", "precision": "int8", "device": "cpu", "batching": "off"}
    package(PackageOptions(layout="fused", **ways))
    with open_view(repository) as view:
        assert [entry.name for entry in sorted(view.folder.glob("one*"))] == ["one"]
        for layout in ("ensemble", "fused"):
            package(PackageOptions(layout=layout, **ways))
            assert json.loads((view.folder / "one" / "manifest.json").read_bytes())["layout"] == "fused"
            view.refresh()
            assert view.left_out == {} and find_probes(view.folder)[0].models == ("one",)
        (line,) = view.differences()
        assert "a newer one is packaged" in line


def test_triton_serves_the_repository_by_itself(repository: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an earlier package of another layout that a server holds, and with what an interrupted packaging left."""
    ways = {"bundle": bundle, "repository": repository, "precision": "fp32", "device": "cpu", "batching": "off"}
    with open_view(repository):
        package(PackageOptions(name="one", layout="fused", **ways))
        with monkeypatch.context() as patch:
            patch.setattr("serving.placement.remove_earlier", lambda *_: None)
            package(PackageOptions(name="other", layout="fused", **ways))
    assert {orphan.name for orphan in find_packages(repository).orphans} == {"other"}
    assert len(list((repository / "one" / "generations").iterdir())) == 2
    with TritonServer(serve_options(repository), log=lambda _: None) as running:
        running.wait_until_ready()
        for probe in find_probes(repository):
            check_answers(probe, ask(running.address.http, probe, timeout=30))
        assert running.traffic().answered.keys() == {"one", "other"}
        running.drain()
