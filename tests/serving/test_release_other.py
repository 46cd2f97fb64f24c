"""Releases on a Triton that tritonize serve has not started, and the parts of a release that need no server."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from export.cli import main
from serving import server
from serving.control_socket import ControlSocket, ReleaseRequest, ask_supervisor
from serving.errors import ArtifactError, ServerError
from serving.integrity import check_ensemble
from serving.layout import HISTORY, current_generation, generations
from serving.options import PackageOptions
from serving.probe import ask, find_probes
from serving.promotion_history import continued
from serving.promotion_record import record_promotion
from serving.release_status import take_status
from serving.release_target import previous_generation, release
from serving.repository import package
from serving.served_view import open_view
from serving.server import TritonServer
from serving.server_record import Running
from tests.helpers.packages import generation_of, reseal_package, step, write_package
from tests.helpers.servers import serve_options
from tests.helpers.surroundings import free_port


@pytest.mark.server
@pytest.mark.long
def test_any_triton_in_explicit_mode(
    repository: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "RESTRICTED", ("logging",))
    options, first = serve_options(repository), generation_of(repository, "one")
    given = ["--url", options.grpc_url, "--repository", str(repository)]
    ways = PackageOptions(bundle=bundle, repository=repository, name="one", precision="fp32", device="cpu", force=True, keep=3)
    with TritonServer(options, log=lambda _: None) as triton:
        triton.wait_until_ready()

        def version() -> str:
            return str(ask(options.base_url, find_probes(repository)[0], timeout=30)["model_version"])

        second = package(ways).manifest.generation
        assert version() == first, "packaging changes nothing"
        assert main(["promote", "one", *given]) == 0
        assert version() == second
        third = package(ways).manifest.generation
        (step(repository, "one", "model") / "1" / "model.onnx").write_bytes(b"no graph")
        reseal_package(repository, "one")
        assert main(["promote", "one", *given]) == 1
        assert f"error: one {third} is refused: " in capsys.readouterr().err
        assert (version(), current_generation(repository, "one")) == (second, second)
        assert main(["rollback", "one", *given]) == 0
        assert (version(), current_generation(repository, "one")) == (first, first)
        assert main(["load", "one", second, *given]) == 0
        capsys.readouterr()
        assert main(["status", "--json", *given]) == 0
        found = {entry["generation"]: entry["state"] for entry in json.loads(capsys.readouterr().out) if entry["name"] == "one"}
        assert found == {first: "answers", second: "loaded", third: "stored"}
        assert main(["unload", "one", second, *given]) == 0
        assert main(["unload", "one", *given]) == 0
        assert main(["rollback", "one", *given]) == 1
        assert "one is not served" in capsys.readouterr().err
        assert main(["load", "one", first, *given]) == 0
        assert version() == first


# --- without a server -------------------------------------------------------------------------------------------------------------


def test_the_status_of_generations(tmp_path: Path) -> None:
    written = [write_package(tmp_path / "models", "one", keep=3) for _ in range(3)]
    (tmp_path / "models" / "one" / written[0] / "manifest.json").unlink()
    loaded = {"one": written[1], f"one.{written[2]}_model": "1"}
    found = {one.generation: one for one in take_status(tmp_path / "models", loaded)}
    assert list(found) == written[::-1]
    assert [one.state for one in found.values()] == ["loaded", "answers", "damaged"]
    assert [one.is_current for one in found.values()] == [True, False, False]
    assert found[written[1]].kind == "fp32 on cpu, ensemble" and found[written[1]].figures["accuracy"] == 0.9
    assert "manifest.json is missing" in found[written[0]].problem


def test_the_status_checks_files(tmp_path: Path) -> None:
    first, second = (write_package(tmp_path / "models", "one", keep=2) for _ in range(2))
    settings = tmp_path / "models" / f"one.{first}_preprocess" / "config.pbtxt"
    settings.write_text("altered", encoding="utf-8")
    states = [one.state for one in take_status(tmp_path / "models", {"one": second})]
    assert states == ["answers", "damaged"]
    settings.unlink()
    assert f"{settings} is missing" in take_status(tmp_path / "models", {})[1].problem


@pytest.mark.parametrize(
    ("served", "reason"), [("", "the server at HTTP port 8000 is starting"), ("view", "the server is restarting")]
)
def test_the_status_while_a_server_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: str, reason: str
) -> None:
    def refuses(*_: object) -> None:
        raise ServerError("the server is restarting", hint="try again later")

    generation = write_package(tmp_path / "models", "one")
    with ControlSocket(tmp_path / "control", refuses) as control:  # type: ignore[arg-type]
        models = str(tmp_path / "models")
        record = Running(pid=1, started=0, http_port=8000, repository=models, ready=False, served=served, control=str(control.path))
        for module in ("serving.server_record", "serving.release_target"):
            monkeypatch.setattr(f"{module}.find_running", lambda _: record)
        assert main(["status"]) == 0
        told = capsys.readouterr()
        assert told.out.splitlines()[1].split("\t")[:4] == ["one", generation, "yes", "unknown"]
        assert told.err == f"warning: what is loaded is not known now: {reason} (try again later)\n"
        assert main(["promote", "one"]) == 1


@pytest.mark.parametrize("command", ["promote", "load"])
@pytest.mark.parametrize("answers", [True, False])
def test_the_result_is_printed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, answers: bool
) -> None:
    generation = write_package(tmp_path / "models", "one")
    result, steps = f"one answers with {generation}", ["one.1 gives the recorded answers"]

    def handle(request: ReleaseRequest, tell: Callable[[str], None]) -> dict[str, object]:
        for line in [*steps, *([result] if answers and request.action == command else [])]:
            tell(line)
        return {"loaded": {}}

    with ControlSocket(tmp_path / "control", handle) as control:
        record = Running(
            pid=1,
            started=0,
            http_port=8000,
            repository=str(tmp_path / "models"),
            ready=True,
            served="view",
            control=str(control.path),
        )
        monkeypatch.setattr("serving.release_target.find_running", lambda _: record)
        assert main([command, "one", generation]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines() == [result if answers or command == "promote" else f"one {generation} is loaded"]
    assert told.err.splitlines() == steps


@pytest.mark.parametrize("command", ["promote", "rollback", "load", "unload"])
def test_the_name_of_a_generation_is_no_name_of_a_package(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "one.20260101000000"]) == 2
    assert "one.20260101000000 is a generation of one: write one 20260101000000" in capsys.readouterr().err


def test_a_line_of_the_status_has_few_figures_and_json_has_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_package(tmp_path / "models", "one")
    status = ["status", "--repository", str(tmp_path / "models"), "--http-port", str(free_port())]
    assert main(status) == 0
    assert capsys.readouterr().out.splitlines()[1].split("\t")[-1] == "label_agreement 1.0000, accuracy 0.9000"
    assert main([*status, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert {"label_agreement", "accuracy"} <= told["figures"].keys()


def test_the_status_of_a_server_without_a_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its models cannot be changed, but they can be listed."""
    models = tmp_path / "models"
    first = write_package(models, "one", keep=2)
    with open_view(models) as view:
        second = write_package(models, "one", keep=2)
        record = Running(pid=1, started=0, http_port=8000, repository=str(models), ready=True, served=str(view.folder))
        for module in ("serving.server_record", "serving.release_target"):
            monkeypatch.setattr(f"{module}.find_running", lambda _: record)
        assert main(["status"]) == 0
        rows = [row.split("\t")[:4] for row in capsys.readouterr().out.splitlines()]
        assert rows[1:] == [["one", second, "yes", "stored"], ["one", first, "", "answers"]]
        assert main(["promote", "one"]) == 1
        assert "was started with --front none: its models cannot be changed" in capsys.readouterr().err


def test_a_view_holds_what_it_serves_and_lets_go_of_the_rest(tmp_path: Path) -> None:
    """The generation that is chosen is also that of the next start."""
    models = tmp_path / "models"
    first = write_package(models, "one")
    with open_view(models) as view:
        second = write_package(models, "one", keep=1)
        assert generations(models, "one") == [first, second]
        manifest = next(iter(take_manifests(models)))
        assert view.add(manifest) == f"one.{second}"
        view.choose("one", second)
        view.drop("one", first)
        assert view.generation_of("one") == second
        view.refresh()
        assert view.generation_of("one") == second
        third = write_package(models, "one", keep=1)
        assert generations(models, "one") == [second, third], "the first one is held no more"
        with pytest.raises(ServerError, match="one is the last model of this server"):
            view.withdraw("one")
    write_package(models, "one", keep=1)
    assert len(generations(models, "one")) == 1


def take_manifests(models: Path) -> list:
    from serving.packages import find_packages

    return [package.manifest for package in find_packages(models).ensembles.values()]


def test_a_single_model_can_be_loaded_beside_itself(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_package(models, "one", layout="fused")
    with open_view(models) as view:
        second = write_package(models, "one", layout="fused")
        trial = view.folder / view.add(take_manifests(models)[0])
        assert f'name: "one.{second}"' in (trial / "config.pbtxt").read_text()
        assert "version_policy" not in (trial / "config.pbtxt").read_text()
        assert (trial / "1" / "manifest.json").is_file() and (trial / "warmup" / second).is_dir()
        view.drop("one", second)
        assert not trial.exists() and not (view.folder / "one" / second).is_symlink()


def test_the_supervisor_is_asked_through_a_private_socket(tmp_path: Path) -> None:
    def handle(request: ReleaseRequest, tell: object) -> dict[str, str]:
        tell(f"step of {request.name}")  # type: ignore[operator]
        if request.name == "bad":
            raise ArtifactError("it is bad", hint="make it better")
        if request.name == "worse":
            raise ZeroDivisionError("worse")
        if request.name == "odd":
            raise ValueError("odd")
        return {"done": request.generation}

    path, steps = tmp_path / "control", []
    with ControlSocket(path, handle):
        assert path.stat().st_mode & 0o777 == 0o600
        request = ReleaseRequest(action="promote", name="one", generation="7")
        assert ask_supervisor(path, request, steps.append) == {"done": "7"}
        assert steps == ["step of one"]
        with pytest.raises(ServerError, match="it is bad") as raised:
            ask_supervisor(path, ReleaseRequest(action="load", name="bad"), steps.append)
        assert raised.value.hint == "make it better"
        with pytest.raises(ServerError, match="ZeroDivisionError: worse"):
            ask_supervisor(path, ReleaseRequest(action="load", name="worse"), steps.append)
        with pytest.raises(ServerError, match=r"^ValueError: odd"):
            ask_supervisor(path, ReleaseRequest(action="load", name="odd"), steps.append)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b'{"act": 1}\n')
            assert b"the request is not understood" in connection.makefile("rb").readline()
    with pytest.raises(ServerError, match="the server does not answer"):
        ask_supervisor(path, request, steps.append)


class PromotedTarget:
    """A server that promotes anything, and writes it into the repository."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository

        self.answering: dict[str, str] = {}

    def loaded(self) -> dict[str, str]:
        return self.answering

    def promote(self, name: str, generation: str, _: object) -> None:
        """Succeed."""
        record_promotion(self.repository, name, generation, self.answering.get(name))
        self.answering[name] = generation


def test_the_way_back_passes_over_what_never_answered(tmp_path: Path) -> None:
    models = tmp_path / "models"
    target = PromotedTarget(models)

    def packaged() -> str:
        return write_package(models, "one", keep=9)

    def back() -> str:
        return release(target, "one", previous_generation(target, "one"), print)

    first = packaged()
    release(target, "one", None, print)
    with pytest.raises(ArtifactError, match=f"known to have answered before {first}"):
        previous_generation(target, "one")
    failed = packaged()
    release(target, "one", first, print)  # what release.sh does when the gates fail
    second = packaged()
    assert release(target, "one", None, print) == second and back() == first
    never, third = packaged(), packaged()
    assert release(target, "one", third, print) == third
    assert back() == first, f"neither {failed} nor {never} has answered; {second} was given up"
    release(target, "one", second, print)
    release(target, "one", third, print)
    shutil.copytree(models, tmp_path / "copy")
    target.repository = tmp_path / "copy"
    assert (back(), back()) == (second, first), "a copied repository knows its history"
    check_ensemble(tmp_path / "copy", "one")


def test_the_history_of_a_server_that_was_only_restarted(tmp_path: Path) -> None:
    """It serves what package made current."""
    first, second = (write_package(tmp_path / "models", "one", keep=2) for _ in range(2))
    target = PromotedTarget(tmp_path / "models")
    target.answering["one"] = second
    assert previous_generation(target, "one") == first
    (tmp_path / "models" / "one" / HISTORY).write_bytes(b"\xff no generation\n")
    with pytest.raises(ArtifactError, match="is known to have answered before") as raised:
        previous_generation(target, "one")
    assert "tritonize promote one GENERATION" in raised.value.hint


@pytest.mark.parametrize(
    ("history", "before", "chosen", "after"),
    [
        ("", None, "a", "a"),
        ("ab", None, "c", "abc"),
        ("ab", None, "a", "a"),
        ("", "a", "b", "ab"),
        ("abc", "a", "c", "ac"),
        ("abc", "c", "a", "a"),
        ("ab", "b", "b", "ab"),
        ("ab", "s", "b", "asb"),
    ],
)
def test_how_a_history_goes_on(history: str, before: str | None, chosen: str, after: str) -> None:
    assert "".join(continued(history, before, chosen)) == after
