"""Prometheus rules, alerts and dashboard: valid, tested, and about metrics that the server really has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.machine import has_gpu
from tests.helpers.front_requests import ask
from tests.helpers.servers import Server

MONITORING = Path(__file__).parents[2] / "serving" / "deploy" / "monitoring"
RULES = MONITORING / "rules.yaml"
ENGINE_METRICS = MONITORING.parents[1] / "runtime" / "generation" / "engine_metrics.py"
"""Where models that generate name theirs; it runs inside Triton only."""
METRIC = re.compile(r"\b(?:nv_|envoy_|tritonize[:_])[a-z0-9_:]+(?=[{\[ )]|$)")
LABELS = re.compile(r"{[^{}]*}|\b(?:by|without|on|group_left) \([^()]*\)")

GPU_METRICS = {"nv_gpu_utilization", "nv_gpu_power_usage", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"}
"""Those that the dashboard and the alerts ask for. Triton has them where there is a GPU."""


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed: it is in Debian's package prometheus")
    return found


def check(*command: str | Path) -> None:
    ran = subprocess.run(command, cwd=MONITORING, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    return content


def dashboard_expressions() -> list[str]:
    """The queries of the panels and of the variables, with all variables set to everything."""
    found = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    return [expression.replace("$package", ".*").replace("$instance", ".*") for expression in found]


def rule_lines() -> Iterator[str]:
    for line in RULES.read_text(encoding="utf-8").splitlines():
        if not line.lstrip().startswith(("#", "summary:", "description:", "- name:")):
            yield line.partition("expr: ")[2] or line


def metrics_in(expression: str) -> set[str]:
    return set(METRIC.findall(LABELS.sub(" ", expression)))


def recorded() -> set[str]:
    return set(re.findall(r"- record: (\S+)", RULES.read_text(encoding="utf-8")))


def scraped(url: str) -> set[str]:
    """Names of the metrics at a page. A histogram has those of its parts."""
    status, text, _ = ask(url)
    assert status == 200
    return set(re.findall(r"^([a-z0-9_:]+)(?:{| )", text, re.MULTILINE))


def test_the_rules_are_valid(promtool: str) -> None:
    check(promtool, "check", "rules", RULES)
    check(promtool, "check", "config", MONITORING / "prometheus.yaml")


def test_the_rules_do_what_their_tests_say(promtool: str) -> None:
    check(promtool, "test", "rules", MONITORING / "rules_test.yaml")


def test_a_wrong_rule_fails_its_test(promtool: str, tmp_path: Path) -> None:
    shutil.copy(MONITORING / "rules_test.yaml", tmp_path)
    text = RULES.read_text(encoding="utf-8")
    assert "/ 1e6\n" in text
    (tmp_path / "rules.yaml").write_text(text.replace("/ 1e6\n", "/ 1e5\n"), encoding="utf-8")
    ran = subprocess.run([promtool, "test", "rules", "rules_test.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode != 0 and "tritonize:in_flight:mean1m" in ran.stdout + ran.stderr


def test_every_query_of_the_dashboard_parses(promtool: str, tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(dashboard_expressions())]
    path = tmp_path / "dashboard.json"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    check(promtool, "check", "rules", path)


def test_the_dashboard_can_be_imported() -> None:
    content = dashboard()
    numbers = [panel["id"] for panel in content["panels"]]
    assert len(set(numbers)) == len(numbers)
    variables = {variable["name"] for variable in content["templating"]["list"]}
    assert set(re.findall(r"\$\{?([a-z]+)", json.dumps(content["panels"]))) <= variables
    for panel in content["panels"]:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["type"] == "row" or all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_every_metric_exists(server: Server) -> None:
    pages = (server.options.metrics_url, f"{server.options.metrics_url}/front", f"{server.options.health_url}/metrics")
    there = set().union(*map(scraped, pages))
    asked = set().union(*map(metrics_in, [*dashboard_expressions(), *rule_lines()])) - recorded()
    assert len(asked) > 20
    of_generation = {name for name in asked if name.startswith("tritonize_")} - there
    assert of_generation == set(re.findall(r"\"(tritonize_\w+)\"", ENGINE_METRICS.read_text(encoding="utf-8")))
    assert asked - there - of_generation == (set() if has_gpu() else GPU_METRICS)
