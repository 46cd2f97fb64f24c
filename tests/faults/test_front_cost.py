"""What the proxy costs: two servers of one repository, with it and without it, asked by turns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from tests.conftest import Once
from tests.helpers.good_traffic import Answer, known_answers
from tests.helpers.load_generator import ANSWERED, LoadPlan, Sent, generate, percentile
from tests.helpers.servers import running, serve_options
from tests.helpers.sized_model import make_sized_bundle

pytestmark = [pytest.mark.server, pytest.mark.endurance, pytest.mark.timeout(1200)]
FRONTS = ("envoy", "none")
CLIENTS = (1, 16)
TURNS = 6
SECONDS = 4.0
ADDED_MS = 5.0
"""Largest time that the proxy may add to the median of one client, in milliseconds."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, once: Once, bundle: Path) -> Iterator[dict[str, ServeOptions]]:
    repository = tmp_path_factory.mktemp("compared") / "model_repository"
    for name, source in (("tiny", bundle), ("sized", once("sized", make_sized_bundle))):
        package(PackageOptions(bundle=source, repository=repository, name=name, precision="fp32", device="cpu"))
    served = {front: replace(serve_options(repository), front=front) for front in FRONTS}
    with running(served["envoy"]), running(served["none"]):
        yield served


@pytest.mark.parametrize("name", ["tiny", "sized"])
def test_cost(servers: dict[str, ServeOptions], tmp_path: Path, name: str) -> None:
    answers = known_answers(servers["none"].base_url.removeprefix("http://"), name, 20)
    measured: dict[tuple[str, int, str], list[Sent]] = {}
    for turn in range(TURNS):
        for protocol in ("http", "grpc"):
            for clients in CLIENTS:
                for front in FRONTS if turn % 2 else reversed(FRONTS):
                    sent = generate(_plan(servers[front], protocol, name, answers, clients), tmp_path)
                    measured.setdefault((protocol, clients, front), []).extend(sent)
    lines = [f"{name}: protocol, clients; requests/s without and with the proxy; p50 in ms without and with"]
    added = {}
    for protocol in ("http", "grpc"):
        for clients in CLIENTS:
            none, envoy = (measured[protocol, clients, front] for front in ("none", "envoy"))
            rates = [len(sent) / (TURNS * SECONDS) for sent in (none, envoy)]
            medians = [percentile(sent, 50) for sent in (none, envoy)]
            added[protocol, clients] = medians[1] - medians[0]
            lines.append(
                f"{protocol}, {clients}: {rates[0]:.0f} → {rates[1]:.0f}/s ({rates[1] / rates[0]:.2f} x), "
                f"{medians[0]:.2f} → {medians[1]:.2f} ms ({added[protocol, clients]:+.2f})"
            )
    sys.stdout.write("\n" + "\n".join(lines) + "\n")
    assert {one.result for sent in measured.values() for one in sent} == {ANSWERED}
    assert max(added["http", 1], added["grpc", 1]) < ADDED_MS


def _plan(options: ServeOptions, protocol: str, name: str, answers: dict[str, Answer], clients: int) -> LoadPlan:
    url = options.grpc_url if protocol == "grpc" else options.base_url.removeprefix("http://")
    return LoadPlan(protocol=protocol, url=url, name=name, texts=list(answers.items()), seconds=SECONDS, clients=clients)
