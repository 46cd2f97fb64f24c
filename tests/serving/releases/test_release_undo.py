"""What is left of a release that fails, and what others are told of one that succeeds. A stand-in takes the place of Triton."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.errors import NoServerError, RequestError, ServerError
from serving.health_port import HealthPort
from serving.layout import generations
from serving.model_control import ModelControl
from serving.options import ServeOptions
from serving.probe import Probe
from serving.release_target import OtherServer
from serving.served_view import open_view
from tests.helpers.front_requests import ask
from tests.helpers.packages import write_package
from tests.helpers.stand_in_triton import Kept, StandIn, start
from tests.helpers.surroundings import free_port


def test_nothing_refused_is_served_after_triton_has_died(
    kept: Kept, triton: StandIn, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = generations(models, "one")[-1], write_package(models, "one", keep=2)

    def dies(action: str, model: str) -> None:
        triton.is_dead = (action, model) == ("check", "one")

    triton.fails = dies
    ended = f"one {second} does not answer: the server ended meanwhile: check one: no server answers"
    with pytest.raises(ServerError, match=f"(?m)^{ended}; after its restart, the server answers with {first}$") as raised:
        kept.ask("promote", "one", second)
    assert raised.value.hint == f"promote it again with: tritonize promote one {second}"
    (logged,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert logged == f"promote one {second} failed: {raised.value.message_with_hint}"
    assert kept.view.generation_of("one") == first
    kept.view.refresh()
    assert kept.view.generation_of("one") == first


@pytest.mark.parametrize("action", ["promote", "load", "unload"])
def test_a_release_that_has_not_begun_when_triton_dies(
    kept: Kept, triton: StandIn, models: Path, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = generations(models, "one")[-1], write_package(models, "one", keep=2)
    triton.is_dead = True
    with pytest.raises(ServerError, match=f"^the server ended before it could {action} one {second}: list : ") as raised:
        kept.ask(action, "one", second)
    assert raised.value.message.endswith(f"no server answers; after its restart, the server answers with {first}")
    assert raised.value.message in caplog.text
    assert (action == "unload") != raised.value.hint.endswith(f"it again with: tritonize {action} one {second}")
    with pytest.raises(ServerError, match="the server is restarting"):
        kept.ask("states", "one")


def test_what_is_loaded_beside_when_triton_dies_is_to_be_loaded_again(kept: Kept, triton: StandIn, models: Path) -> None:
    second = write_package(models, "one", keep=2)

    def dies(action: str, model: str) -> None:
        triton.is_dead = (action, model) == ("check", f"one.{second}")

    triton.fails = dies
    with pytest.raises(ServerError, match=f"^the server ended before it could load one {second}: check one.{second}: ") as raised:
        kept.ask("load", "one", second)
    assert raised.value.hint == f"load it again with: tritonize load one {second}"


def test_what_was_unloaded_on_purpose_was_not_packaged_since_the_start(kept: Kept, models: Path) -> None:
    write_package(models, "two")
    (added,) = kept.view.differences()
    assert added == "two was packaged since the start: load it with: tritonize load two"
    kept.ask("load", "two")
    kept.ask("unload", "two")
    kept.view.refresh()
    assert kept.view.differences() == []


def test_a_package_that_is_refused_is_not_served_after_triton_has_died(kept: Kept, triton: StandIn, models: Path) -> None:
    write_package(models, "two")

    def dies(action: str, model: str) -> None:
        triton.is_dead = (action, model) == ("check", "two")

    triton.fails = dies
    with pytest.raises(ServerError, match=r"does not answer: the server ended .* after its restart, the server does not serve two"):
        kept.ask("load", "two")
    kept.view.refresh()
    assert kept.view.generation_of("two") is None and kept.view.generation_of("one") is not None


@pytest.mark.parametrize(
    "error", [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"), OSError(28, "disk full"), AttributeError(), KeyboardInterrupt()]
)
def test_any_failure_is_undone(kept: Kept, triton: StandIn, models: Path, error: BaseException) -> None:
    first, second = generations(models, "one")[-1], write_package(models, "one", keep=2)
    before = dict(triton.versions)

    def fails(action: str, model: str) -> None:
        if (action, model) == ("check", "one"):
            raise error

    triton.fails = fails
    with pytest.raises(type(error)) as raised:
        kept.ask("promote", "one", second)
    assert raised.value is error and error.__notes__[-1] == f"one answers with {first} as before"
    assert triton.versions == before and kept.view.generation_of("one") == first
    assert not (kept.view.folder / f"one.{second}").exists()


@pytest.mark.parametrize(("old", "new"), [("fused", "ensemble"), ("ensemble", "fused"), ("fused", "fused")])
def test_the_processes_that_triton_ends_at_once_are_those_of_an_old_single_model(
    tmp_path: Path, triton: StandIn, old: str, new: str
) -> None:
    models = tmp_path / "layouts"
    first = write_package(models, "one", layout=old)
    with open_view(models) as view:
        triton.folder = view.folder
        start(triton, models, "one", old)
        second = write_package(models, "one", layout=new, keep=2)
        Kept(view, triton).ask("promote", "one", second)
    left, loaded = triton.calls.index(("leave", "one", first)), triton.calls.index(("load", "one"))
    assert (left < loaded) == (old == "fused")


def test_health_follows_what_is_loaded_and_unloaded_on_purpose(tmp_path: Path, triton: StandIn) -> None:
    """A package that is unloaded raises no alert, one that is loaded is reported, and so is one that is good again."""
    models = tmp_path / "packages"
    for name in ("one", "bad"):
        write_package(models, name)
    (models / "bad" / generations(models, "bad")[0] / "config.pbtxt").write_text("altered")
    options = ServeOptions(http_port=free_port(), grpc_port=free_port(), metrics_port=free_port())
    with open_view(models) as view:
        triton.folder = view.folder
        start(triton, models, "one")
        kept = Kept(view, triton)

        def packages() -> dict[str, str]:
            lines = ask(f"{options.health_url}/metrics")[1].splitlines()
            return dict(line.removeprefix('tritonize_package_ready{package="').split('"} ') for line in lines if "{" in line)

        with HealthPort(options, kept.readiness):
            assert packages() == {"one": "1", "bad": "0"}
            write_package(models, "two")
            kept.ask("load", "two")
            assert packages() == {"one": "1", "two": "1", "bad": "0"}
            kept.ask("unload", "two")
            assert packages() == {"one": "1", "bad": "0"}
            write_package(models, "bad", keep=2)

            def refuses(action: str, model: str) -> None:
                if (action, model) == ("check", "bad"):
                    raise ServerError("it is still bad")

            triton.fails = refuses
            with pytest.raises(ServerError, match="bad is not served"):
                kept.ask("promote", "bad")
            kept.ask("states", "")
            assert packages() == {"one": "1", "bad": "0"}
            triton.fails = lambda *_: None
            kept.ask("promote", "bad")
            assert packages() == {"one": "1", "bad": "1"} and kept.record == {"left_out": {}}
            kept.ask("unload", "bad")
            view.refresh()
            kept.ask("states", "")
            assert packages() == {"one": "1"} and kept.record == {"left_out": {}}


def test_the_new_processes_are_watched_before_the_old_ones_have_gone(kept: Kept, models: Path) -> None:
    found: list[tuple[int, set[str]]] = []

    def tell(line: str) -> None:
        if " answers with " in line:
            found.append((kept.stubs_watched, set(kept.server.on_trial)))

    kept.ask("promote", "one", write_package(models, "one", keep=2), tell)
    assert found == [(1, set())]


def test_what_cannot_be_loaded_beside_is_unloaded_and_let_go(kept: Kept, triton: StandIn, models: Path) -> None:
    first, second = generations(models, "one")[-1], write_package(models, "one", keep=2)
    before = dict(triton.versions)

    def refuses(action: str, model: str) -> None:
        if (action, model) == ("check", f"one.{second}"):
            raise ServerError("it answers otherwise")

    triton.fails = refuses
    with pytest.raises(ServerError, match="it answers otherwise"):
        kept.ask("load", "one", second)
    assert triton.versions == before and not (kept.view.folder / f"one.{second}").exists()
    write_package(models, "one")
    assert first in generations(models, "one") and second not in generations(models, "one")


def test_what_another_server_has_not_loaded_is_not_unloaded(triton: StandIn, models: Path) -> None:
    first = start(triton, models, "one")
    second, server = write_package(models, "one", keep=2), OtherServer(models, "")
    for generation in (first, second, "20200101000000"):
        with pytest.raises(ServerError, match=f"one.{generation} is not loaded"):
            server.unload("one", generation)
    before = dict(triton.versions)
    server.load("one", second, lambda _: None)
    assert f"one.{second}" in triton.versions
    server.unload("one", second)
    assert triton.versions == before


class SilentStream(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A model that streams, and never answers."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def ModelMetadata(self, *_: object) -> service_pb2.ModelMetadataResponse:  # noqa: N802
        return service_pb2.ModelMetadataResponse(name="one")

    def ModelStreamInfer(self, _: object, context: grpc.ServicerContext) -> Iterator[object]:  # noqa: N802
        deadline = time.monotonic() + 20
        while context.is_active() and time.monotonic() < deadline:
            time.sleep(0.02)
        self.ended.set()
        yield from ()


class Unloaded(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A server whose model is not available. It is live or not, or wants a key of those who ask (None)."""

    live: bool | None = True

    def ServerLive(self, _: object, context: grpc.ServicerContext) -> service_pb2.ServerLiveResponse:  # noqa: N802
        if self.live is None:
            context.abort(
                grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'triton-grpc-protocol-health'"
            )
        return service_pb2.ServerLiveResponse(live=self.live)

    def ModelInfer(self, _: object, context: grpc.ServicerContext) -> None:  # noqa: N802
        context.abort(grpc.StatusCode.UNAVAILABLE, "one has no available versions")


def test_a_model_that_is_not_available_is_told_from_a_server_that_has_ended() -> None:
    service, server = Unloaded(), grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port, probe = server.add_insecure_port("127.0.0.1:0"), Probe(ensemble="one", body={"inputs": []}, models=("one",))
    server.start()
    with ModelControl(f"127.0.0.1:{port}") as control:
        for service.live in (True, None):
            with pytest.raises(RequestError, match="one has no available versions"):
                control.check(probe, seconds=5)
        service.live = False
        with pytest.raises(NoServerError, match="one could not be asked: no server answers"):
            control.check(probe, seconds=5)
        server.stop(0).wait()
        with pytest.raises(NoServerError, match="one could not be asked: no server answers"):
            control.check(probe, seconds=5)


def test_the_time_limit_of_a_stream_holds() -> None:
    service, server = SilentStream(), grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    begun = time.monotonic()
    try:
        with ModelControl(f"127.0.0.1:{port}") as control, pytest.raises(ServerError, match="one did not answer within 0 s"):
            control.check(Probe(ensemble="one", body={}, models=("one",), endpoint="generate"), seconds=0.3)
        assert time.monotonic() - begun < 5
        assert service.ended.wait(5), "the request is cancelled"
    finally:
        server.stop(0)
