"""The proxy in front of a running server: what passes, and what it refuses."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from serving.client import TritonPipeline
from serving.errors import RequestError
from serving.front.replies import FULL
from tests.helpers.front_requests import ask, body, error_of, tensor
from tests.helpers.packages import step
from tests.helpers.servers import Server, serve_options

# -- what passes --------------------------------------------------------------------------------------------------------------


@pytest.mark.server
def test_what_curl_sends_by_default_is_answered(server: Server) -> None:
    """Its content type is that of a form; a large form ends Triton, so the proxy gives it another type."""
    texts = ["a word " * 9_000] * 64
    status, text, _ = ask(f"{server.options.base_url}/v2/models/ragged/infer", body(*texts))
    assert status == 200
    assert {output["name"] for output in json.loads(text)["outputs"]} == {"LABEL", "SCORE", "SCORES", "TRUNCATED"}


@pytest.mark.server
def test_a_compressed_body_is_answered(server: Server) -> None:
    url = f"{server.options.base_url}/v2/models/ragged/infer"
    plain, packed = ask(url, body("fine")), ask(url, gzip.compress(body("fine")), content_encoding="gzip")
    assert plain[:2] == packed[:2]


@pytest.mark.server
def test_a_compressed_bomb_is_refused(server: Server) -> None:
    bomb = gzip.compress(b" " * 64_000_000)
    assert len(bomb) < 100_000
    status, _, _ = ask(f"{server.options.base_url}/v2/models/ragged/infer", bomb, content_encoding="gzip")
    assert status in {400, 413}
    assert ask(f"{server.options.base_url}/v2/models/ragged/infer", body("still fine"))[0] == 200


@pytest.mark.server
@pytest.mark.parametrize("path", ["", "/health/ready", "/health/live", "/models/ragged", "/models/ragged/config", "/models/stats"])
def test_reads_pass(server: Server, path: str) -> None:
    assert ask(f"{server.options.base_url}/v2{path}")[0] == 200


@pytest.mark.server
def test_reads_pass_over_grpc(server: Server) -> None:
    with grpcclient.InferenceServerClient(server.url("grpc")) as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("ragged")
        assert client.get_model_metadata("ragged").name == "ragged"
        model = step(server.options.repository, "ragged", "model").name
        assert client.get_inference_statistics(model).model_stats[0].name == model


@pytest.mark.server
def test_metrics_are_those_of_triton_and_of_the_proxy(server: Server) -> None:
    assert "nv_inference_request_success" in ask(server.options.metrics_url)[1]
    assert "envoy_http_downstream_rq_total" in ask(f"{server.options.metrics_url}/front")[1]
    assert ask(server.options.metrics_url.removesuffix("metrics") + "quitquitquit", b"")[0] == 404


# -- what is refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.server
def test_a_body_that_is_too_large_is_refused(server: Server) -> None:
    answer = ask(f"{server.options.base_url}/v2/models/ragged/infer", body("x" * 5_000_000))
    assert error_of(answer) == (413, "the request is larger than the 4 MiB that the server accepts")
    with grpcclient.InferenceServerClient(server.url("grpc")) as client:
        with pytest.raises(InferenceServerException, match="larger than the 4 MiB") as caught:
            client.infer("ragged", tensor(b"x" * 5_000_000))
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.server
def test_a_hold_refuses_inference_and_nothing_else(small: Path) -> None:
    """As the supervisor does where requests that their clients have given up wait in Triton."""
    from serving.front import start_front

    options = serve_options(small)
    with start_front(options, log=lambda _: None) as front:
        front.open()
        front.hold(on=True)
        status, text, headers = ask(f"{options.base_url}/v2/models/ragged/infer", body("x"))
        assert (status, json.loads(text), headers["retry-after"]) == (503, {"error": FULL}, "1")
        with grpcclient.InferenceServerClient(options.grpc_url) as client, pytest.raises(InferenceServerException) as caught:
            client.infer("ragged", tensor(b"x"))
        assert (caught.value.status(), caught.value.message()) == (
            "StatusCode.RESOURCE_EXHAUSTED",
            FULL,
        )
        reads = [error_of(ask(f"{options.base_url}/v2/models/ragged"))[1]]
        front.hold(on=False)
        reads.append(error_of(ask(f"{options.base_url}/v2/models/ragged/infer", body("x")))[1])
    assert reads == ["the model server does not answer: it may be restarting"] * 2, "they reach for Triton, which does not run"


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_client_does_not_try_a_body_that_is_too_large_again(server: Server, protocol: str) -> None:
    with TritonPipeline("ragged", url=server.url(protocol), protocol=protocol, timeout=30) as pipe:  # type: ignore[arg-type]
        begun = time.monotonic()
        with pytest.raises(RequestError, match="the request is larger than the") as caught:
            pipe("x" * 5_000_000)
    assert caught.value.status == "INVALID_ARGUMENT"
    assert time.monotonic() - begun < 20


@pytest.mark.server
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/ragged/nothing", 404),
        ("/v2/models/ragged%2finfer", 400),
        ("/v2/repository/index", 403),
        ("/v2/systemsharedmemory/region/x/register", 403),
        ("/v2/cudasharedmemory/status", 403),
        ("/v2/models/ragged/trace/setting", 403),
        ("/admin", 404),
        ("/", 404),
    ],
)
def test_other_paths_are_closed(server: Server, path: str, status: int) -> None:
    found, text, _ = ask(f"{server.options.base_url}{path}", b"{}")
    assert found == status, text


@pytest.mark.server
def test_steps_answer_no_client(server: Server) -> None:
    answer = ask(f"{server.options.base_url}/v2/models/ragged.20260102030405_preprocess/infer", body("x"))
    assert error_of(answer) == (
        403,
        "ragged.20260102030405_preprocess is a step of the ensemble ragged: send the request to ragged",
    )
    with grpcclient.InferenceServerClient(server.url("grpc")) as client:
        with pytest.raises(InferenceServerException, match="a step of the ensemble ragged") as caught:
            client.infer("ragged.20260102030405_preprocess", tensor(b"x"))
        assert caught.value.status() == "StatusCode.PERMISSION_DENIED"


@pytest.mark.server
def test_grpc_methods_that_change_the_server_are_closed(server: Server) -> None:
    with grpcclient.InferenceServerClient(server.url("grpc")) as client:
        for change in (
            lambda: client.load_model("ragged"),
            lambda: client.unload_model("ragged"),
            lambda: client.register_system_shared_memory("x", "/x", 16),
            client.get_model_repository_index,
            client.get_log_settings,
            client.get_trace_settings,
            client.get_system_shared_memory_status,
        ):
            with pytest.raises(InferenceServerException) as caught:
                change()
            assert caught.value.status() == "StatusCode.PERMISSION_DENIED", caught.value
        assert client.is_server_ready()


@pytest.mark.server
def test_many_headers_are_refused(server: Server) -> None:
    answer = ask(f"{server.options.base_url}/v2/health/ready", **{f"x_{number}": "y" for number in range(200)})
    assert answer[0] == 431
