"""Health checks by real inference. Triton's readiness report is not enough: a model whose stub process died still reports ready."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.artifact import MANIFEST, read_manifest
from serving.errors import ArtifactError, RequestError
from serving.manifests import RepositoryManifest
from serving.triton_address import fetch

PENDING_METRIC = "nv_inference_pending_request_count"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One inference request to one ensemble.

    Attributes:
        ensemble: The name of the ensemble.
        body: The request in Triton's JSON form.
    """

    ensemble: str
    body: dict[str, Any]

    def curl(self, base_url: str) -> str:
        """Return a curl command line that sends the request."""
        return f"curl -s {base_url}/v2/models/{self.ensemble}/infer -d {shlex.quote(json.dumps(self.body, ensure_ascii=False))}"


def find_probes(repository: Path) -> list[Probe]:
    """Return one probe for each ensemble that tritonize packaged into ``repository``.

    Raises:
        ArtifactError: The repository holds no such ensemble, or an older version of tritonize packaged one.
    """
    probes = []
    for manifest_path in sorted(repository.glob(f"*/{MANIFEST}")):
        if not (repository / f"{manifest_path.parent.name}_model" / "current").is_symlink():
            continue  # a model of another tool that has a manifest too
        manifest = read_manifest(manifest_path.parent, RepositoryManifest)
        probes.append(Probe(ensemble=manifest.name, body=manifest.probe.model_dump(mode="json")))
    if not probes:
        raise ArtifactError(f"{repository} holds no packaged ensemble", hint="create one with: tritonize package")
    return probes


def ask(base_url: str, probe: Probe, *, timeout: float) -> dict[str, Any]:
    """Send the probe over HTTP and return Triton's answer as JSON.

    Args:
        base_url: The HTTP address of the server.
        probe: The request to send.
        timeout: Time limit in seconds.

    Raises:
        RequestError: Triton answered with an error.
        OSError: No server answered in time.
    """
    status, content = fetch(base_url, f"/v2/models/{probe.ensemble}/infer", json.dumps(probe.body).encode(), timeout=timeout)
    if status != 200:
        message = content.decode(errors="replace")
        raise RequestError(f"{probe.ensemble}: {message}", status="UNAVAILABLE" if status == 503 else "INTERNAL")
    answer: dict[str, Any] = json.loads(content)
    return answer


def is_ready(base_url: str) -> bool:
    """Return whether Triton reports that it is ready."""
    try:
        return fetch(base_url, "/v2/health/ready", timeout=5)[0] == 200
    except OSError:
        return False


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Request counts from Triton's statistics, summed over all ensembles.

    Attributes:
        first_step_ended: Requests whose first step has ended so far, with or without success.
        in_flight: Requests that wait for the first step of their ensemble, or that have passed it but not the last one.
    """

    first_step_ended: int
    in_flight: int


def read_traffic(base_url: str, metrics_url: str, probes: list[Probe]) -> Traffic:
    """Read the statistics of every step, and the number of requests that wait for the first one.

    Args:
        base_url: The base URL of the HTTP API.
        metrics_url: The base URL of the metrics.
        probes: The ensembles.

    Raises:
        OSError: The server did not answer.
    """
    status, content = fetch(base_url, "/v2/models/stats", timeout=5)
    if status != 200:
        raise ConnectionError(f"{base_url}: the statistics were refused with status {status}")
    statistics = {entry["name"]: entry["inference_stats"] for entry in json.loads(content)["model_stats"]}
    pending = pending_requests(fetch(metrics_url, "/metrics", timeout=5)[1].decode())
    first_step_ended = in_flight = 0
    for probe in probes:
        first, *later = (statistics[f"{probe.ensemble}_{step}"] for step in ("preprocess", "model", "postprocess"))
        failed = sum(step["fail"]["count"] for step in later)
        first_step_ended += first["success"]["count"] + first["fail"]["count"]
        in_flight += (
            pending.get(f"{probe.ensemble}_preprocess", 0) + first["success"]["count"] - later[-1]["success"]["count"] - failed
        )
    return Traffic(first_step_ended=first_step_ended, in_flight=in_flight)


def pending_requests(metrics: str) -> dict[str, int]:
    """Read from Triton's Prometheus metrics how many requests wait for each model.

    Args:
        metrics: The metrics in Prometheus text format.
    """
    from prometheus_client.parser import text_string_to_metric_families  # only draining needs it

    samples = (sample for family in text_string_to_metric_families(metrics) for sample in family.samples)
    return {sample.labels["model"]: int(sample.value) for sample in samples if sample.name == PENDING_METRIC}
