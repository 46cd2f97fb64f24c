"""``tritonize models`` and ``tritonize remove`` on made-up repositories."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from export import cli
from serving.artifact import MANIFEST, inputs_record, sha256, write_manifest
from serving.errors import ArtifactError
from serving.inventory import take_inventory
from serving.layout import current_folder
from serving.leases import take_lease
from serving.removal import remove_artifacts, remove_model
from serving.server_record import Running, running_servers
from tests.helpers.manifests import bundle_manifest, checkpoint_manifest
from tests.helpers.packages import entries_of, generation_of, step, write_package


@pytest.fixture
def repository(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder ``model_repository`` with the ensembles one and two, and a model of another tool; no server runs."""
    monkeypatch.setattr("serving.server_record.running_servers", list)
    repository = Path("model_repository")
    for name in ("one", "two"):
        write_package(repository, name)
    (repository / "theirs" / "1").mkdir(parents=True)
    (repository / "theirs_model").mkdir()
    return repository


def serving_now(repository: Path, folder: Path, *names: str, port: int = 8000, **changes: Any) -> Running:
    """The record of a server that serves what these ensembles are now."""
    view = folder / f"view-{port}"
    view.mkdir()
    for name in names:
        (view / name).mkdir()
        shutil.copy(repository / name / "config.pbtxt", view / name)
        (view / name / generation_of(repository, name)).symlink_to(current_folder(repository.absolute(), name))
    place = str(repository.absolute())
    return Running(pid=os.getpid(), started=0, http_port=port, repository=place, ready=True, served=str(view), **changes)


def listed(repository: Path, *servers: Running) -> dict[str, tuple[str, ...]]:
    """The notes about each model."""
    return {entry.name: entry.notes for entry in take_inventory(repository, Path("artifacts"), servers)}


def test_models_are_listed_with_what_they_are(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    head, one, _ = capsys.readouterr().out.splitlines()
    assert head.split("\t") == ["name", "state", "task", "precision", "device", "packaged", "MB", "ports", "notes"]
    name, state, task, precision, device, packaged, size, served, notes = one.split("\t")
    assert (name, state, task, precision, device, size) == ("one", "ready", "text-classification", "fp32", "cpu", "0.4")
    assert packaged.startswith("20") and (served, notes) == ("", "")
    assert cli.main(["models", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["name"], second["name"], first["ports"], first["notes"]) == ("one", "two", [], [])
    assert first["bytes"] > 400_000 and first["packaged"].endswith("+00:00")


def test_models_are_a_table_on_a_terminal(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = step(repository, "two", "preprocess")
    shutil.rmtree(gone)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert cli.main(["models"]) == 0
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert re.search(r"^one +ready +text-classification +fp32 on cpu ", out, re.MULTILINE)
    assert re.search(r"^two +damaged ", out, re.MULTILINE) and "\t" not in out
    assert out.splitlines()[-1].startswith(f"two: {gone} is missing (package it again with: tritonize")


def test_a_repository_without_models_says_what_to_do(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--repository", "nothing"]) == 0
    assert capsys.readouterr().out == "nothing holds no packaged model (make one with: tritonize package)\n"


def test_what_is_out_of_date_is_said(repository: Path, in_folder: Path) -> None:
    bundle = in_folder / "artifacts/mine/bundle"
    bundle.mkdir(parents=True)
    exported = bundle_manifest(inputs_record({}, {"model.safetensors": "earlier"}), name="mine")
    write_manifest(bundle, exported)
    write_package(repository, "one", bundle="mine", bundle_sha256=sha256(bundle / MANIFEST))
    assert listed(repository)["one"] == ()
    write_package(repository, "one", bundle="mine", bundle_sha256="another")
    again = "older than its bundle: package it again with: tritonize package --name one --bundle artifacts/mine/bundle"
    assert listed(repository)["one"] == (again,)
    checkpoint = in_folder / "artifacts/mine/checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_text("later", encoding="utf-8")
    write_manifest(checkpoint, checkpoint_manifest(name="base"))  # the bundle names the checkpoint so
    export = "its bundle is older than its checkpoint: export it again with: tritonize export --name mine"
    assert listed(repository) == {"one": (again, export), "two": ()}


def test_servers_are_said(repository: Path, in_folder: Path) -> None:
    server = serving_now(repository, in_folder, "one", "two", left_out={"three": "damaged"})
    other = serving_now(repository, in_folder, "one", port=9000)
    entries = {entry.name: entry for entry in take_inventory(repository, Path("artifacts"), [server, other])}
    assert (entries["one"].ports, entries["two"].ports) == ((8000, 9000), (8000,))
    assert entries["one"].notes == ()
    elsewhere = in_folder / "elsewhere"
    shutil.copytree(repository, elsewhere, symlinks=True)
    assert [entry.ports for entry in take_inventory(elsewhere, Path("artifacts"), [server])] == [(), ()]
    write_package(repository, "one")
    earlier = (
        "the server at HTTP port 8000 serves an earlier package: promote this one with: tritonize promote one --http-port 8000"
    )
    assert listed(repository, server)["one"] == (earlier,)
    assert listed(repository, serving_now(repository, in_folder, port=7000, left_out={"two": "x: tritonize stop"}))["two"] == (
        "the server at HTTP port 7000 leaves it out: x: tritonize stop --http-port 7000",
    )


def test_an_altered_file_is_damage_and_large_ones_are_not_read(
    repository: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    altered = step(repository, "two", "preprocess") / "config.pbtxt"
    altered.write_bytes(altered.read_bytes().replace(b"x", b"y"))
    one, two = take_inventory(repository, Path("artifacts"), [])
    assert (one.state, two.state) == ("ready", "damaged") and f"{altered} was altered" in two.notes[0]
    server = serving_now(repository, in_folder, "one", left_out={"two": two.notes[0]})
    assert listed(repository, server)["two"] == (two.notes[0], "the server at HTTP port 8000 leaves it out")
    monkeypatch.setattr("serving.inventory.LISTED_BYTES", 50_000)
    assert listed(repository)["two"] == ()
    altered.unlink()
    assert f"{altered} is missing" in listed(repository)["two"][0]


def test_orphans_are_listed_and_removed(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generation = generation_of(repository, "one")
    shutil.rmtree(repository / "one")
    (entry, _) = take_inventory(repository, Path("artifacts"), [])
    assert (entry.name, entry.state, entry.bytes > 400_000) == ("one", "orphan", True)
    assert cli.main(["remove", "one"]) == 0
    removed = ", ".join(f"model_repository/one.{generation}{suffix}" for suffix in ("", "_model", "_postprocess", "_preprocess"))
    assert capsys.readouterr().out == f"removed {removed}\n"
    assert set(listed(repository)) == {"two"}


def test_a_model_is_removed_and_others_stay(repository: Path) -> None:
    left = sorted(["theirs", "theirs_model", *entries_of("two", generation_of(repository, "two"))])
    assert cli.main(["remove", "one"]) == 0
    assert sorted(path.name for path in repository.iterdir()) == left
    assert listed(repository) == {"two": ()}


@pytest.mark.parametrize("name", ["three", "theirs", "theirs_model", "one_model", "one_preprocess"])
def test_what_is_no_packaged_model_is_not_removed(repository: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(repository.rglob("*"))
    assert cli.main(["remove", name]) == 1
    error = f"error: model_repository holds no model {name} that tritonize packaged (it holds: one, two)\n"
    assert capsys.readouterr().err == error
    assert sorted(repository.rglob("*")) == before


@pytest.mark.parametrize("name", ["../one", "one/", ".", "", "a b"])
def test_a_name_that_is_none_is_wrong_usage(repository: Path, name: str) -> None:
    before = sorted(repository.rglob("*"))
    assert cli.main(["remove", "--", name]) == 2
    assert sorted(repository.rglob("*")) == before


def test_nothing_outside_is_removed(repository: Path, in_folder: Path) -> None:
    outside = in_folder / "outside"
    path = step(repository, "one", "model")
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(ArtifactError, match="_model was not written by tritonize package"):
        remove_model(repository, "one", servers=[])
    assert {entry.name for entry in outside.iterdir()} == {"config.pbtxt", "1"}
    assert step(repository, "one", "postprocess").is_dir(), "nothing is removed then"


def test_links_inside_are_not_followed(repository: Path, in_folder: Path) -> None:
    outside = in_folder / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept", encoding="utf-8")
    (repository / "one" / "planted").symlink_to(outside)
    (step(repository, "one", "model") / "planted").symlink_to(outside)
    remove_model(repository, "one", servers=[])
    assert (outside / "precious").read_text(encoding="utf-8") == "kept"


def test_a_served_model_is_not_removed(repository: Path, in_folder: Path) -> None:
    server = serving_now(repository, in_folder, "one")
    with pytest.raises(ArtifactError, match="one is served at HTTP port 8000") as raised:
        remove_model(repository, "one", servers=[server])
    assert raised.value.hint == "stop the server first with: tritonize stop --http-port 8000, or give --force"
    lease = take_lease(current_folder(repository, "one"))
    assert lease is not None
    try:
        with pytest.raises(ArtifactError, match=r"a server uses .*/one/20"):
            remove_model(repository, "one", servers=[])
        assert "one" in listed(repository)
        remove_model(repository, "one", servers=[server], force=True)
    finally:
        os.close(lease)
    assert list(listed(repository)) == ["two"]
    remove_model(repository, "two", servers=[server])


def test_artifacts_are_removed_where_that_is_asked(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("artifacts/one")
    (folder / "bundle").mkdir(parents=True)
    write_manifest(folder / "bundle", bundle_manifest())
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "mine").write_text("no artifact", encoding="utf-8")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    assert cli.main(["remove", "one"]) == 0
    assert (folder / "bundle").is_dir()
    assert cli.main(["remove", "one", "--with-artifacts"]) == 0, "it is packaged no more"
    assert capsys.readouterr().out.splitlines()[-1] == "removed artifacts/one/bundle"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "notes.txt"]
    shutil.rmtree(folder / "checkpoint")
    (folder / "notes.txt").unlink()
    (folder / "tuned.toml").write_text("", encoding="utf-8")
    assert remove_artifacts(Path("artifacts"), "one") == [folder / "tuned.toml"]
    assert not folder.exists()
    assert cli.main(["remove", "one", "--with-artifacts"]) == 1
    folder.symlink_to(repository.absolute())
    with pytest.raises(ArtifactError, match="artifacts/one is a link"):
        remove_artifacts(Path("artifacts"), "one")


def test_records_of_dead_servers_are_no_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / f"tritonize-{os.getuid()}"
    folder.mkdir(mode=0o700)
    dead = {"pid": 2**22 + 1, "started": 1, "http_port": 8000, "repository": "", "ready": True}
    (folder / "8000.json").write_text(json.dumps(dead))
    (folder / "9000.json").write_text("{")
    (folder / "notes.json").write_text("{}")
    assert running_servers() == []
