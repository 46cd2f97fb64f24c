"""What ``serve`` prints when it is ready: addresses, and a request that a user can copy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from serving import probe
from serving.commands import _announce
from serving.options import ServeOptions
from serving.probe import Probe

OPTIONS = ServeOptions(http_port=1, grpc_port=2, metrics_port=3)


@pytest.fixture(autouse=True)
def _served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "find_probes", lambda _: [Probe(ensemble="reviews", body={"inputs": []}, models=())])


@pytest.mark.parametrize(
    ("changes", "scheme", "end"),
    [
        ({}, "http", "'"),
        ({"tls_certificate": Path("c.pem")}, "https", "'"),
        ({"api_key_file": Path("keys")}, "http", ' -H "x-api-key: $TRITONIZE_API_KEY"'),
    ],
)
def test_the_lines_fit_the_protection(changes: dict[str, Path], scheme: str, end: str, capsys: pytest.CaptureFixture[str]) -> None:
    _announce(replace(OPTIONS, **changes), Path("served"), ["other"])  # type: ignore[arg-type]
    ready, addresses, curl = capsys.readouterr().out.splitlines()
    assert ready == "ready: reviews   left out: other"
    assert addresses.split("   ")[:2] == [f"  HTTP {scheme}://127.0.0.1:1", "gRPC 127.0.0.1:2"]
    assert addresses.endswith("health http://127.0.0.1:4/readyz")
    assert curl.startswith(f"  curl -s {scheme}://127.0.0.1:1/v2/models/reviews/infer -d '") and curl.endswith(end)
