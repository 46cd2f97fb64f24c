"""What a running server answers with is changed without a wrong answer and without a lost request."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from export.cli import main
from serving.client import TritonPipeline
from serving.errors import RequestError
from serving.layout import current_generation
from serving.options import PackageOptions, ServeOptions
from serving.removal import remove_model
from serving.repository import package
from serving.server_record import find_running
from serving.triton_address import fetch
from tests.helpers.label_traffic import LabelTraffic, ask_label, swap_labels
from tests.helpers.packages import reseal_package, step
from tests.helpers.servers import running, serve_options

pytestmark = pytest.mark.server


@dataclass(frozen=True)
class Released:
    """A running server of a repository with the package ``one``.

    Attributes:
        options: Its options.
        bundles: The bundle, and one whose labels are swapped.
        labels: Texts and the label of each.
        layout: The layout of the package.
    """

    options: ServeOptions
    bundles: tuple[Path, Path]
    labels: dict[str, str]
    layout: str

    @property
    def repository(self) -> Path:
        return self.options.repository

    def package(self, which: int, **changes: object) -> str:
        """Package one of the bundles, and return the generation."""
        ways = {"name": "one", "precision": "fp32", "device": "cpu", "batching": "off", "instances": 1, "force": True, "keep": 3}
        options = {"bundle": self.bundles[which], "repository": self.repository, "layout": self.layout} | ways | changes
        return package(PackageOptions(**options)).manifest.generation

    def run(self, *arguments: str) -> int:
        """Run a release command, and return its exit code."""
        port = [] if "--url" in arguments else ["--http-port", str(self.options.http_port)]
        return main([*arguments, *port, "--repository", str(self.repository)])

    def answers_with(self) -> str | None:
        """The generation that clients get the answers of."""
        found = find_running(self.options.http_port)
        assert found is not None
        served = found.generation_of(self.repository, "one")
        return served and served.name

    def label(self, text: str, model: str = "one") -> str:
        """The label of a text, as a client gets it now."""
        connection = http.client.HTTPConnection(self.options.base_url.removeprefix("http://"), timeout=30)
        try:
            return ask_label(connection, model, text)
        finally:
            connection.close()


@pytest.fixture(scope="module", params=["ensemble", pytest.param("fused", marks=pytest.mark.long)])
def released(
    request: pytest.FixtureRequest, bundle: Path, sample_rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Released]:
    folder = tmp_path_factory.mktemp("release")
    bundles = (bundle, swap_labels(bundle, folder / "swapped"))
    labels = {row["text"]: row["label"] for row in sample_rows}
    options = serve_options(folder / "models")
    made = Released(options=options, bundles=bundles, labels=labels, layout=request.param)
    made.package(0)
    with running(options):
        right = {text: made.label(text) for text in labels}  # the checkpoint knows nearly all rows by heart
        assert sum(right[text] == labels[text] for text in labels) > 30
        yield Released(options=options, bundles=bundles, labels=right, layout=request.param)


def cannot_load(released: Released, generation: str) -> None:
    """A model that ONNX Runtime cannot read; for the fused layout the only one."""
    ensemble = step(released.repository, "one", "model") / "1"
    folder = ensemble if released.layout == "ensemble" else released.repository / "one" / generation
    (folder / "model.onnx").write_bytes(b"no graph")
    reseal_package(released.repository, "one")


def answers_otherwise(released: Released, generation: str) -> None:
    """Labels that the model does not mean, with checksums that fit."""
    ensemble = step(released.repository, "one", "postprocess") / "1"
    folder = ensemble if released.layout == "ensemble" else released.repository / "one" / generation
    program = folder / "tasks" / "text_classification.py"
    program.write_text(program.read_text().replace("scores.argmax(axis=-1)", "scores.argmin(axis=-1)"))
    reseal_package(released.repository, "one")


def was_altered(released: Released, generation: str) -> None:
    (released.repository / "one" / generation / "config.pbtxt").write_text("altered")


BROKEN: dict[Callable[[Released, str], None], str] = {
    cannot_load: "could not be loaded",
    answers_otherwise: "does not answer as it did when it was packaged",
    was_altered: "was altered",
}


def mapped_weights() -> set[Path]:
    """The folders of mapped weights that servers have on the disk."""
    return {path for path in Path(tempfile.gettempdir()).glob("tritonize_*/weights/*") if path.is_dir()}


def change_over(released: Released, *, promotes: int, broken: int, rollbacks: int, clients: int) -> LabelTraffic:
    """Promote, refuse and roll back by turns, under load. The generations have swapped labels by turns."""
    kinds, others = list(BROKEN), mapped_weights()
    with LabelTraffic(released.options, "one", released.labels, clients=clients) as traffic:
        for turn in range(max(promotes, broken, rollbacks)):
            if turn < promotes:
                before = released.answers_with()
                generation = released.package(1 - turn % 2)
                assert released.run("promote", "one") == 0
                assert released.answers_with() == generation
            if turn < broken:
                bad = released.package(turn % 2)
                kinds[turn % len(kinds)](released, bad)
                assert released.run("promote", "one", bad) == 1
                assert released.answers_with() == generation != bad
                for entry in released.repository.glob(f"one/{bad}"):
                    shutil.rmtree(entry)
            if turn < rollbacks:
                assert released.run("rollback", "one") == 0
                assert released.answers_with() == before
                assert current_generation(released.repository, "one") == released.answers_with()
    assert (traffic.wrong[:3], traffic.failed[:3]) == ([], [])
    assert mapped_weights() <= others, "the weights of models that are not loaded any more take no place on the disk"
    return traffic


@pytest.mark.long
def test_nothing_is_lost_and_nothing_is_mixed(released: Released) -> None:
    traffic = change_over(released, promotes=2, broken=1, rollbacks=1, clients=2)
    assert min(traffic.answered["HTTP"], traffic.answered["gRPC"]) > 100
    assert not [path for path in released.repository.rglob("*") if path.is_symlink()]


@pytest.mark.endurance
@pytest.mark.timeout(3600)
def test_nothing_is_lost_in_many_changes(released: Released) -> None:
    traffic = change_over(released, promotes=20, broken=5, rollbacks=5, clients=8)
    assert min(traffic.answered["HTTP"], traffic.answered["gRPC"]) > 1000


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_generation_is_refused(
    released: Released, damage: Callable[[Released, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before, text = released.answers_with(), next(iter(released.labels))
    bad = released.package(0)
    damage(released, bad)
    assert released.run("promote", "one") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and BROKEN[damage] in error
    assert released.answers_with() == before and released.label(text) == released.labels[text]
    time.sleep(4)  # the supervisor looks for processes that ended, and asks what answered nothing
    running_now = find_running(released.options.http_port)
    assert running_now is not None and running_now.ready
    shutil.rmtree(released.repository / "one" / bad)


def test_a_generation_is_loaded_under_its_own_name(released: Released, capsys: pytest.CaptureFixture[str]) -> None:
    text, served = next(iter(released.labels)), released.answers_with()
    other = released.package(1)
    assert released.run("load", "one", other) == 0
    assert released.label(text, f"one.{other}") == released.label(text) == released.labels[text]
    assert released.answers_with() == served
    capsys.readouterr()
    assert released.run("status", "--json") == 0
    states = {entry["generation"]: entry["state"] for entry in json.loads(capsys.readouterr().out)}
    assert (states[other], states[str(served)]) == ("loaded", "answers")
    assert released.run("unload", "one", other) == 0
    with pytest.raises(ConnectionError):
        released.label(text, f"one.{other}")
    assert released.run("unload", "one", other) == 1
    assert "is not loaded" in capsys.readouterr().err
    assert released.run("unload", "one") == 1
    assert "one is the last model of this server" in capsys.readouterr().err
    assert released.label(text) == released.labels[text]


@pytest.mark.long
def test_a_package_that_was_added_is_served_and_ended(released: Released, capsys: pytest.CaptureFixture[str]) -> None:
    """Its processes come and go without a restart, and the health port follows."""
    text, running_now = next(iter(released.labels)), find_running(released.options.http_port)
    assert running_now is not None
    before, health = triton_of(running_now.pid), f"http://127.0.0.1:{released.options.own_health_port}"
    released.package(1, name="two")
    assert released.run("load", "two") == 0
    assert released.label(text, "two") == released.labels[text]
    urls = {"http": released.options.base_url.removeprefix("http://"), "grpc": released.options.grpc_url}
    clients = [TritonPipeline("two", url=url, protocol=protocol, timeout=100) for protocol, url in urls.items()]
    assert [client(text)[0]["label"] for client in clients] == [released.labels[text]] * 2
    time.sleep(4)  # the supervisor looks for processes that ended, and asks what answered nothing
    assert "two" in fetch(health, "/readyz", timeout=5)[1].decode()
    assert released.run("unload", "two") == 0
    with pytest.raises(ConnectionError):
        released.label(text, "two")
    for client in clients:
        asked = time.monotonic()
        with client, pytest.raises(RequestError, match=r"^two is not loaded at ") as error:
            client(text)
        assert time.monotonic() - asked < 30 and error.value.hint.endswith("load it with: tritonize load two")
    time.sleep(4)
    status, content = fetch(health, "/readyz", timeout=5)
    assert status == 200 and "two" not in content.decode()
    assert triton_of(running_now.pid) == before and released.label(text) == released.labels[text]
    remove_model(released.repository, "two", servers=[])


def triton_of(supervisor: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(supervisor).children() if child.name() == "tritonserver"]


def test_the_layout_changes_both_ways(released: Released) -> None:
    """The processes of an old single model end as soon as the new one is loaded, old steps later: no restart."""
    if released.layout == "ensemble":
        pytest.skip("from the other layout it goes both ways, too")
    server = find_running(released.options.http_port)
    assert server is not None
    before, first = triton_of(server.pid), released.package(1)
    assert released.run("promote", "one", first) == 0
    with LabelTraffic(released.options, "one", released.labels, clients=2) as traffic:
        for which, layout in enumerate(("fused" if released.layout == "ensemble" else "ensemble", released.layout)):
            generation = released.package(which, layout=layout)
            assert released.run("promote", "one") == 0
            time.sleep(1)  # the supervisor looks for processes that ended
            assert released.answers_with() == generation
    assert (traffic.wrong[:3], traffic.failed[:3]) == ([], [])
    assert triton_of(server.pid) == before


def test_a_restart_serves_what_was_promoted(released: Released) -> None:
    text, generation = next(iter(released.labels)), released.package(1)
    assert released.run("promote", "one") == 0
    server = find_running(released.options.http_port)
    assert server is not None
    (triton,) = triton_of(server.pid)
    triton.kill()
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        time.sleep(0.2)
        now = find_running(released.options.http_port)
        if now is not None and now.ready and triton_of(server.pid) not in ([], [triton]):
            break
    assert released.answers_with() == generation
    assert released.label(text) == released.labels[text]
    assert released.run("promote", "one", generation) == 0, "it answers already"


@pytest.mark.long
def test_a_server_that_is_killed_during_a_promotion(released: Released, capsys: pytest.CaptureFixture[str]) -> None:
    """The generation is not called refused, ``status`` lists what it can, and the promotion can be repeated."""
    before, server = released.answers_with(), find_running(released.options.http_port)
    generation = released.package(1)
    assert server is not None and server.ready
    (triton,) = triton_of(server.pid)
    processes = len(triton.children())
    with ThreadPoolExecutor(1) as executor:
        promotion = executor.submit(released.run, "promote", "one", generation)
        deadline = time.monotonic() + 30
        while len(triton.children()) == processes and time.monotonic() < deadline:  # until it loads a step
            time.sleep(0.01)
        triton.kill()
        assert promotion.result(60) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "refused" not in error and "the server ended" in error, error
    assert f"; after its restart, the server answers with {before} (promote it again with: " in error
    assert f": tritonize promote one {generation} --http-port {server.http_port} " in error
    assert released.run("status") == 0
    assert re.search(rf"^one\t{before}\t\t(unknown|answers)\t", capsys.readouterr().out, re.MULTILINE)
    deadline, now = time.monotonic() + 90, server
    while time.monotonic() < deadline and (triton_of(server.pid) in ([], [triton]) or not now.ready):
        time.sleep(0.2)
        now = find_running(server.http_port) or now
    assert released.answers_with() == before
    assert released.run("promote", "one", generation) == 0
    assert capsys.readouterr().out == f"one answers with {generation}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["promote", "two"], "holds no package two"),
        (["promote", "one", "20200101000000"], "holds no generation 20200101000000 of one (it holds: 20"),
        (["promote", "one", "latest"], "holds no generation latest of one"),
        (["load", "one", "nope"], "holds no generation nope of one (it holds: 20"),
        (["load", "two"], "holds no package two"),
        (["rollback", "two"], "two is not served"),
        (["unload", "two"], "two is not served"),
        (["promote", "one", "--url", "127.0.0.1:9"], "no server answers at 127.0.0.1:9"),
    ],
)
def test_what_cannot_be_done(released: Released, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert released.run(*arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and said in error


def test_without_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["promote", "one", "--http-port", "1", "--repository", str(tmp_path)]) == 1
    assert "you have no server at HTTP port 1" in capsys.readouterr().err
    assert main(["status", "--http-port", "1", "--repository", str(tmp_path)]) == 0
    assert "holds no packaged model" in capsys.readouterr().out
