"""Requests in flight as the rules compute them, in a Prometheus that scrapes the server, against what the clients see."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from serving.options import ServeOptions
from tests.conftest import Once
from tests.helpers.front_requests import ask
from tests.helpers.load_generator import ANSWERED, LoadPlan, generate
from tests.helpers.sized_model import make_sized_bundle
from tests.helpers.surroundings import free_port

pytestmark = [pytest.mark.server, pytest.mark.endurance, pytest.mark.timeout(900)]
NAME = "sized"
RULES = Path(__file__).parents[2] / "serving" / "deploy" / "monitoring" / "rules.yaml"
SECONDS = 85
"""Of load: the rules look back over a minute, every 15 s."""
IN_FLIGHT = f'sum(tritonize:in_flight:mean1m{{package="{NAME}", step="all"}}) + sum(tritonize:front_waiting:mean1m)'


@pytest.fixture(scope="module")
def ensembles(once: Once) -> dict[str, Path]:
    return {NAME: once("sized", make_sized_bundle)}


@pytest.fixture(scope="module")
def prometheus(options: ServeOptions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus with the rules, which scrapes the server every 5 s."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed: it is in Debian's package of that name")
    folder, target = tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{options.metrics_port}"
    jobs = [
        {"job_name": name, "metrics_path": path, "static_configs": [{"targets": [target]}]}
        for name, path in (("tritonize", "/metrics"), ("tritonize-front", "/metrics/front"))
    ]
    config = {"global": {"scrape_interval": "5s"}, "rule_files": [str(RULES)], "scrape_configs": jobs}
    (folder / "prometheus.yaml").write_text(json.dumps(config), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    flags = [
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen([binary, *flags], stdout=log, stderr=log)
        try:
            yield f"http://{address}"
        finally:
            running.terminate()
            running.wait(30)


def query(prometheus: str, expression: str) -> float:
    """The value of an expression now."""
    status, answer, _ = ask(f"{prometheus}/api/v1/query?query={quote(expression)}")
    assert status == 200, answer
    (found,) = json.loads(answer)["data"]["result"]
    return float(found["value"][1])


@pytest.mark.parametrize("clients", [1, 8, 32])
def test_requests_in_flight_are_those_of_the_clients(options: ServeOptions, prometheus: str, tmp_path: Path, clients: int) -> None:
    texts = [(f"a warm and funny film number {number} " * 8, ()) for number in range(50)]  # long enough to compute for a while
    plan = LoadPlan(
        protocol="http", url=options.base_url.removeprefix("http://"), name=NAME, texts=texts, seconds=SECONDS, clients=clients
    )
    begun = time.monotonic()
    sent = generate(plan, tmp_path)
    measured = query(prometheus, IN_FLIGHT)
    assert {one.result for one in sent} == {ANSWERED}
    lasted = [one for one in sent if one.ended - begun > SECONDS - 60]
    truth = sum(one.seconds for one in lasted) / 60
    sys.stdout.write(
        f"\n{clients} clients: {truth:.2f} in flight for them, {measured:.2f} by the rules, {len(sent) / SECONDS:.0f} requests/s\n"
    )
    assert 0.8 < measured / truth < 1.2
