"""The running server: batches of mixed length, bad input among good, what it refuses to do."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from serving.probe import pending_requests
from tests.helpers.digests import assert_digests_are_right
from tests.helpers.packages import step
from tests.helpers.servers import STRANGE_TEXTS, Server

pytestmark = pytest.mark.server
LEAKS = ("Traceback", "/tmp", "/home", "/root", ".py", "model_repository", "site-packages")  # noqa: S108


def infer_inputs(rows: list[Any], name: str = "TEXT", dtype: str = "BYTES") -> list[grpcclient.InferInput]:
    array = np.array(rows, dtype=np.object_ if dtype == "BYTES" else np.float32)[:, None]
    entry = grpcclient.InferInput(name, list(array.shape), dtype)
    entry.set_data_from_numpy(array)
    return [entry]


def scores(server: Server, name: str, rows: list[Any]) -> np.ndarray:
    with grpcclient.InferenceServerClient(server.url("grpc")) as client:
        array: np.ndarray = client.infer(name, infer_inputs(rows)).as_numpy("SCORES")
    return array


def post(server: Server, name: str, body: bytes) -> tuple[int, str]:
    request = urllib.request.Request(f"{server.options.base_url}/v2/models/{name}/infer", body)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return response.status, response.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace")


def json_body(data: Any, *, name: str = "TEXT", shape: list[int] | None = None, datatype: str = "BYTES") -> bytes:
    return json.dumps({"inputs": [{"name": name, "shape": shape or [len(data), 1], "datatype": datatype, "data": data}]}).encode()


def counts(client: grpcclient.InferenceServerClient, name: str) -> tuple[int, int]:
    statistics = client.get_inference_statistics(name).model_stats[0]
    return statistics.inference_count, statistics.execution_count


def together(work: Callable[[int], None], clients: int) -> None:
    """Run ``work(0)`` … ``work(clients - 1)`` in threads; raise what any of them raised."""
    failures: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize(("name", "tolerance"), [("ragged", 1e-4), ("alone", 1e-6), ("int8", 1e-6)])
def test_an_answer_does_not_depend_on_who_else_asks(server: Server, texts: list[str], name: str, tolerance: float) -> None:
    sample = [text * (1 + index % 3) for index, text in enumerate(texts[:96])]
    with grpcclient.InferenceServerClient(server.url("grpc")) as client:
        alone = [client.infer(name, infer_inputs([text])).as_numpy("SCORES")[0] for text in sample]
        inferences, executions = counts(client, step(server.options.repository, name, "model").name)

        def ask(index: int) -> None:
            for repeat in range(40):
                at = (index * 7 + repeat * 5) % len(sample)
                answer = client.infer(name, infer_inputs([sample[at]])).as_numpy("SCORES")[0]
                np.testing.assert_allclose(answer, alone[at], atol=tolerance)

        together(ask, 32)
        deadline = time.monotonic() + 10  # Triton counts a request after it has sent the answer
        while (after := counts(client, step(server.options.repository, name, "model").name))[0] - inferences < 32 * 40:
            assert time.monotonic() < deadline, f"{after[0] - inferences} requests are counted"
            time.sleep(0.1)
    assert after[0] - inferences == 32 * 40
    if name == "ragged":
        # without batching it is 1; how many meet in a batch depends on the load of the machine, the benchmark measures it
        assert (after[0] - inferences) / (after[1] - executions) >= 1.25


def test_rows_of_one_request_do_not_depend_on_each_other(server: Server, texts: list[str]) -> None:
    sample = sorted(texts[:40], key=len)
    alone = np.concatenate([scores(server, "ragged", [text.encode()]) for text in sample])
    np.testing.assert_allclose(scores(server, "ragged", [text.encode() for text in sample]), alone, atol=1e-5)


def test_outputs_have_the_types_and_shapes_of_the_contract(server: Server) -> None:
    with grpcclient.InferenceServerClient(server.url("grpc")) as client:
        answer = client.infer("ragged", infer_inputs(["one", "two", "three"]))
    label, score, all_scores = (answer.as_numpy(name) for name in ("LABEL", "SCORE", "SCORES"))
    assert (label.shape, score.shape, all_scores.shape) == ((3, 1), (3, 1), (3, 2))
    assert (score.dtype, all_scores.dtype) == (np.float32, np.float32)
    assert set(label.reshape(-1)) <= {b"negative", b"positive"}
    np.testing.assert_allclose(all_scores.sum(axis=1), 1, atol=1e-6)


def test_every_answer_says_whose_it_is(direct_server: Server) -> None:
    assert_digests_are_right(direct_server.options, ["ragged", "alone", "int8"], [{"TEXT": text} for text in STRANGE_TEXTS])
    pairs = [{"TEXT": text, "TEXT_PAIR": pair} for text in ("", "a b", "a") for pair in ("b", "c")]
    assert_digests_are_right(direct_server.options, ["pairs"], pairs)


BAD_JSON = {
    "another tensor": json_body(["a"], name="WORDS"),
    "no tensor": b'{"inputs": []}',
    "another type": json_body([1.5], datatype="FP32"),
    "another shape": json_body(["a", "b"], shape=[1, 2]),
    "one dimension": json_body(["a"], shape=[1]),
    "shape and data disagree": json_body(["a", "b"], shape=[3, 1]),
    "more rows than max_batch_size": json_body(["a"] * 65),
    "an output that is none": json_body(["a"])[:-1] + b', "outputs": [{"name": "NOPE"}]}',
    "not UTF-8": b'{"inputs":[{"name":"TEXT","shape":[1,1],"datatype":"BYTES","data":["\xff\xfe"]}]}',
}
UNPARSABLE = {
    "negative shape": json_body(["a"], shape=[-1, 1]),
    "numbers for text": json_body([1], shape=[1, 1]),
    "null": json_body([None], shape=[1, 1]),
    "not JSON": b'{"inputs": [',
    "not an object": b"[]",
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_request_over_http(server: Server, case: str) -> None:
    status, message = post(server, "ragged", BAD_JSON[case])
    assert 400 <= status < 500, (status, message)
    assert not any(leak in message for leak in LEAKS), message
    assert post(server, "ragged", json_body(["still fine"]))[0] == 200


@pytest.mark.parametrize("case", UNPARSABLE)
def test_unparsable_request_over_http(server: Server, case: str) -> None:
    status, message = post(server, "ragged", UNPARSABLE[case])
    assert status == 400
    assert json.loads(message)["error"]
    assert not any(leak in message for leak in LEAKS), message
    assert post(server, "ragged", json_body(["still fine"]))[0] == 200


def test_bytes_that_are_not_utf8_name_the_row(server: Server) -> None:
    with pytest.raises(InferenceServerException, match="TEXT, row 1: byte 2 is not valid UTF-8") as caught:
        scores(server, "ragged", [b"fine", b"ab\xff", b"fine"])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("payload", [b"\xff\xff\xff\x7fabc", b"\x05\x00\x00\x00abc", b"\x01", b"\x00\x00\x00\x00" * 2, b""])
def test_a_bytes_tensor_that_lies_about_its_length(server: Server, payload: bytes) -> None:
    entry = grpcclient.InferInput("TEXT", [1, 1], "BYTES")
    entry._raw_content = payload
    with grpcclient.InferenceServerClient(server.url("grpc")) as client:
        with pytest.raises(InferenceServerException) as caught:
            client.infer("ragged", [entry])
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert not any(leak in caught.value.message() for leak in LEAKS), caught.value.message()
        assert client.infer("ragged", infer_inputs(["fine"])).as_numpy("LABEL").shape == (1, 1)


def test_what_waits_for_a_first_step_is_counted(server: Server) -> None:
    """A drain relies on it."""
    with urllib.request.urlopen(server.options.metrics_url, timeout=10) as answer:  # noqa: S310
        counted = pending_requests(answer.read().decode())
    assert {step(server.options.repository, name, "preprocess").name for name in server.bundles} <= set(counted)


def test_a_pair_needs_both_texts(server: Server) -> None:
    status, message = post(server, "pairs", json_body(["only one"]))
    assert status == 400
    assert "TEXT_PAIR" in message or "2 inputs" in message


def test_good_requests_among_bad_ones_are_all_answered(server: Server, texts: list[str]) -> None:
    sample = texts[:50]
    right = [scores(server, "ragged", [text.encode()])[0] for text in sample]
    bad = [
        lambda: infer_inputs([b"\xff\xfe"]),
        lambda: infer_inputs(["a"], name="WORDS"),
        lambda: infer_inputs([1.0], dtype="FP32"),
        lambda: infer_inputs(["a"] * 65),
        lambda: infer_inputs([b"ok", b"\x80"]),
    ]
    with grpcclient.InferenceServerClient(server.url("grpc")) as client:

        def ask(index: int) -> None:
            for repeat in range(25):
                at = (index + repeat) % len(sample)
                np.testing.assert_allclose(
                    client.infer("ragged", infer_inputs([sample[at]])).as_numpy("SCORES")[0], right[at], atol=1e-4
                )
                with pytest.raises(InferenceServerException) as caught:
                    client.infer("ragged", bad[(index + repeat) % len(bad)]())
                assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
                assert not any(leak in caught.value.message() for leak in LEAKS), caught.value.message()

        together(ask, 16)
        assert client.is_server_ready()


def with_parameters(data: Any, **parameters: Any) -> bytes:
    return json.dumps(json.loads(json_body(data)) | {"parameters": parameters}).encode()


def http_scores(message: str) -> np.ndarray:
    outputs = {output["name"]: output for output in json.loads(message)["outputs"]}
    return np.array(outputs["SCORES"]["data"]).reshape(outputs["SCORES"]["shape"])


def test_options_are_plain_parameters_over_http(server: Server, texts: list[str]) -> None:
    logits, softmax, sigmoid = (
        http_scores(post(server, "ragged", with_parameters(texts[:4], function_to_apply=function))[1])
        for function in ("none", "softmax", "sigmoid")
    )
    np.testing.assert_allclose(softmax, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-logits)), atol=1e-5)
    np.testing.assert_allclose(softmax, scores(server, "ragged", [text.encode() for text in texts[:4]]), atol=1e-4)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"function_to_apply": "relu"}, "option function_to_apply must be one of softmax, sigmoid, none, not 'relu'"),
        ({"function_to_apply": 3}, "option function_to_apply must be a string, not 3"),
        ({"truncation": 1}, "option truncation must be true or false, not 1"),
        ({"truncation": "false"}, "option truncation must be true or false, not 'false'"),
        ({"colour": "red"}, "text-classification has no option colour; it has truncation, max_length"),
        ({"truncation": False}, "row 1 is longer than the 96 tokens the model takes, and truncation is off"),
    ],
)
def test_bad_options_are_refused_over_both_protocols(server: Server, parameters: dict[str, Any], message: str) -> None:
    rows = ["short", "long " * 500]
    status, said = post(server, "ragged", with_parameters(rows, **parameters))
    assert (status, message in json.loads(said)["error"]) == (400, True), said
    with grpcclient.InferenceServerClient(server.url("grpc")) as client:
        with pytest.raises(InferenceServerException) as caught:
            client.infer("ragged", infer_inputs(rows), parameters=parameters)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert message in caught.value.message()
        assert not any(leak in caught.value.message() + said for leak in LEAKS)


def test_requests_with_and_without_options_share_batches(server: Server, texts: list[str]) -> None:
    """At once, so that the steps find them in one batch: each gets what it asked for, and a refusal is its own."""
    sample = [text * (1 + index % 3) for index, text in enumerate(texts[:30])]
    ways: list[dict[str, Any]] = [{}, {"function_to_apply": "none"}, {"function_to_apply": "sigmoid"}, {"truncation": True}]
    steps = [step(server.options.repository, "ragged", suffix).name for suffix in ("preprocess", "postprocess")]
    with grpcclient.InferenceServerClient(server.url("grpc")) as client:

        def asked(text: str, way: dict[str, Any]) -> np.ndarray:
            found: np.ndarray = client.infer("ragged", infer_inputs([text]), parameters=way or None).as_numpy("SCORES")[0]
            return found

        alone = [[asked(text, way) for way in ways] for text in sample]
        before = [counts(client, model) for model in steps]

        def ask(index: int) -> None:
            for repeat in range(25):
                at, way = (index * 7 + repeat * 5) % len(sample), (index + repeat) % (len(ways) + 1)
                if way < len(ways):
                    np.testing.assert_allclose(asked(sample[at], ways[way]), alone[at][way], atol=1e-4)
                    continue
                with pytest.raises(InferenceServerException, match="row 0 is longer than the 96 tokens") as caught:
                    asked("long " * 500, {"truncation": False})
                assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"

        together(ask, 24)
        after = [counts(client, model) for model in steps]
    for (inferences, executions), (more_inferences, more_executions) in zip(before, after, strict=True):
        assert more_inferences - inferences > more_executions - executions, "some were in one batch"
    assert np.abs(np.array(alone)[:, 0] - np.array(alone)[:, 1]).max() > 0.1, "told apart"


def test_ids_that_the_model_has_not_do_not_harm_their_neighbours(direct_server: Server) -> None:
    """Sent past the ensemble, straight to the model: the only way to get such ids into a batch."""

    def ids(value: int) -> list[grpcclient.InferInput]:
        entry = grpcclient.InferInput("input_ids", [1, 4], "INT64")
        entry.set_data_from_numpy(np.full((1, 4), value, np.int64))
        digest = grpcclient.InferInput("request_digest", [1, 1], "INT64")
        digest.set_data_from_numpy(np.zeros((1, 1), np.int64))
        return [entry, digest]

    model = step(direct_server.options.repository, "ragged", "model").name
    with grpcclient.InferenceServerClient(direct_server.url("grpc")) as client:
        right = client.infer(model, ids(5)).as_numpy("logits")

        def ask(index: int) -> None:
            for _ in range(20):
                if index % 4:
                    np.testing.assert_allclose(client.infer(model, ids(5)).as_numpy("logits"), right, atol=1e-4)
                else:
                    with pytest.raises(InferenceServerException, match="could not run on this input"):
                        client.infer(model, ids(999_999))

        together(ask, 16)


@pytest.mark.parametrize(
    "path",
    [
        "repository/models/ragged/unload",
        "repository/models/ragged/load",
        "repository/index",
        "logging",
        "trace/setting",
        "systemsharedmemory/status",
    ],
)
def test_apis_that_change_the_server_are_closed(server: Server, path: str) -> None:
    method = "GET" if path.endswith(("status", "logging", "setting")) else "POST"
    request = urllib.request.Request(f"{server.options.base_url}/v2/{path}", b"{}" if method == "POST" else None, method=method)  # noqa: S310
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)  # noqa: S310
    with caught.value:
        assert caught.value.code == 403
