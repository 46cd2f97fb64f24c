"""Traces of requests under the trace of their client, ids of requests, and a log of JSON objects."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from serving.client import TritonPipeline
from serving.errors import InvalidArgumentError
from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from serving.request_context import RequestContext, current_request, request_context
from tests.helpers.collector import Collector, Span
from tests.helpers.served_processes import log_path
from tests.helpers.servers import running, serve_options

SPAN = "00f067aa0ba902b7"
STEPS = ["compute", "compute", "compute", "model", "postprocess", "preprocess"]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, bundle: Path, collector: Collector) -> Iterator[ServeOptions]:
    """A server of an ensemble and of a fused model that traces what its clients trace, and logs JSON."""
    folder = tmp_path_factory.mktemp("traced") / "model_repository"
    for layout in ("ensemble", "fused"):
        package(
            PackageOptions(
                bundle=bundle,
                repository=folder,
                name=layout,
                precision="fp32",
                device="cpu",
                batching="off",
                layout=layout,
                instances=1,
            )
        )
    options = replace(serve_options(folder), trace=collector.url, trace_rate=0.0, log_format="json")
    with running(options):
        yield options


def traceparent(*, sampled: bool = True) -> tuple[str, str]:
    """A trace of its own, and the header for it."""
    trace = secrets.token_hex(16)
    return trace, f"00-{trace}-{SPAN}-{'01' if sampled else '00'}"


def ask(options: ServeOptions, protocol: str, name: str, text: str = "A warm film.") -> None:
    url = options.grpc_url if protocol == "grpc" else options.base_url.removeprefix("http://")
    with TritonPipeline(name, url=url, protocol=protocol) as pipe:
        pipe(text)


def kind(name: str) -> str:
    """What a span is about: a step without the name of its package."""
    return name.rpartition("_")[2]


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(("layout", "steps"), [("ensemble", STEPS), ("fused", ["compute"])])
@pytest.mark.long
def test_a_request_is_traced_under_the_trace_of_its_client(
    traced: ServeOptions, collector: Collector, protocol: str, layout: str, steps: list[str]
) -> None:
    trace, parent = traceparent()
    with request_context(traceparent=parent, request_id=f"id of {trace}"):
        ask(traced, protocol, layout)
    spans = collector.wait(trace, len(steps) + 2)
    assert sorted(kind(span.name) for span in spans) == sorted(["InferRequest", layout, *steps])
    by_id = {span.span: span for span in spans}
    root = next(span for span in spans if span.name == "InferRequest")
    assert root.parent == SPAN
    assert all(_root(span, by_id) is root for span in spans)
    models = [span for span in spans if span.name not in ("InferRequest", "compute")]
    assert {span.attributes["triton.request_id"] for span in models} == {f"id of {trace}"}
    assert {span.service for span in spans} == {"tritonize"}


def _root(span: Span, by_id: dict[str, Span]) -> Span:
    while span.parent in by_id:
        span = by_id[span.parent]
    return span


@pytest.mark.server
def test_requests_that_nobody_traces_are_left_to_the_rate(traced: ServeOptions, collector: Collector) -> None:
    unsampled, header = traceparent(sampled=False)
    for protocol in ("http", "grpc"):
        with request_context(traceparent=header):
            ask(traced, protocol, "fused")
        ask(traced, protocol, "fused")
    last, header = traceparent()
    with request_context(traceparent=header):
        ask(traced, "http", "fused")
    collector.wait(last, 3)
    assert unsampled not in {span.trace for span in collector.spans}
    assert {span.parent for span in collector.spans if span.name == "InferRequest"} == {SPAN}


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_log_of_json_names_the_model_and_the_request(traced: ServeOptions, protocol: str) -> None:
    request_id = f"a request by {protocol}"
    with request_context(request_id=request_id), pytest.raises(InvalidArgumentError):
        url = traced.grpc_url if protocol == "grpc" else traced.base_url.removeprefix("http://")
        with TritonPipeline("ensemble", url=url, protocol=protocol) as pipe:
            pipe.tensors([["a secret text"]], top_k="many")
    deadline = time.monotonic() + 20
    while not (found := [line for line in log_lines(traced) if line.get("request_id") == request_id]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (line,) = found
    assert (line["level"], line["source"], line["model"]) == ("warning", "tritonize", "ensemble")
    assert line["status"] == ("HTTP 400" if protocol == "http" else "gRPC INVALID_ARGUMENT")
    assert "top_k must be a whole number" in line["message"] and "secret" not in json.dumps(line)
    assert next(line["message"].split(":")[0] for line in log_lines(traced) if line["source"] == "tritonize") == "starting"


def log_lines(options: ServeOptions) -> list[dict[str, str]]:
    return [json.loads(line) for line in log_path(options).read_text(encoding="utf-8").splitlines()]


def test_contexts_stand_in_each_other() -> None:
    _, parent = traceparent()
    with request_context(request_id="outer", traceparent=parent, tracestate="vendor=1"):
        with request_context(request_id="inner"):
            assert current_request() == RequestContext(request_id="inner", traceparent=parent, tracestate="vendor=1")
            assert current_request().headers() == {"x-request-id": "inner", "traceparent": parent, "tracestate": "vendor=1"}
        assert current_request().request_id == "outer"
    assert current_request().headers() == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"request_id": ""}, "request_id must be"),
        ({"request_id": "two\nlines"}, "request_id must be"),
        ({"request_id": " x"}, "request_id must be"),
        ({"request_id": "x" * 129}, "request_id must be"),
        ({"request_id": "für"}, "request_id must be"),
        ({"traceparent": ""}, "traceparent must be"),
        ({"traceparent": f"00-{'0' * 32}-{SPAN}-01"}, "traceparent must be"),
        ({"traceparent": f"00-{'A' * 32}-{SPAN}-01"}, "traceparent must be"),
        ({"tracestate": "a=1"}, "goes with traceparent"),
        ({"traceparent": f"00-{'a' * 32}-{SPAN}-01", "tracestate": "a\nb"}, "tracestate must be"),
    ],
)
def test_what_cannot_be_sent_is_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message), request_context(**given):
        pytest.fail("it was taken")


@pytest.mark.parametrize("name", ["request_id", "traceparent", "tracestate"])
@pytest.mark.parametrize("value", [5, b"x"])
def test_what_is_no_string_is_refused(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a string, not {type(value).__name__}"), request_context(**{name: value}):
        pytest.fail("it was taken")


@pytest.mark.parametrize("is_valid", [True, False])
def test_the_current_span_of_open_telemetry_is_sent(monkeypatch: pytest.MonkeyPatch, is_valid: bool) -> None:
    state = SimpleNamespace(to_header=lambda: "vendor=1")
    context = SimpleNamespace(is_valid=is_valid, trace_id=0xAB, span_id=0xCD, trace_flags=1, trace_state=state)
    module = ModuleType("opentelemetry.trace")
    module.get_current_span = lambda: SimpleNamespace(get_span_context=lambda: context)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", module)
    sent = {"traceparent": f"00-{'0' * 30}ab-{'0' * 14}cd-01", "tracestate": "vendor=1"} if is_valid else {}
    assert current_request().headers() == sent
    _, parent = traceparent()
    with request_context(traceparent=parent):
        assert current_request().headers() == {"traceparent": parent}, "what the caller gives holds"
    with nullcontext() if not is_valid else request_context(request_id="7"):
        assert current_request().headers() == (sent | {"x-request-id": "7"} if is_valid else {})
