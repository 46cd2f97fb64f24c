"""Real inferences that tell whether an ensemble answers. Reports of readiness do not: a dead stub still reports ready."""

from __future__ import annotations

import json
import re
import shlex
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.artifact import MANIFEST, read_manifest
from serving.errors import ArtifactError, RequestError
from serving.manifests import RepositoryManifest

PENDING = re.compile(r'^nv_inference_pending_request_count\{model="([^"]+)"[^}]*\} (\d+)', re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One request to one ensemble, as Triton's JSON."""

    ensemble: str
    body: dict[str, Any]

    def curl(self, base_url: str) -> str:
        """A command line that sends it."""
        return f"curl -s {base_url}/v2/models/{self.ensemble}/infer -d {shlex.quote(json.dumps(self.body, ensure_ascii=False))}"


def find_probes(repository: Path) -> list[Probe]:
    """One probe for each ensemble packaged into ``repository``.

    Raises:
        ArtifactError: there is none, or the manifest of one cannot be read.
    """
    probes = []
    for manifest_path in sorted(repository.glob(f"*/{MANIFEST}")):
        if not (repository / f"{manifest_path.parent.name}_model" / "current").is_symlink():
            continue  # somebody else's model, with a manifest of its own
        manifest = read_manifest(manifest_path.parent, RepositoryManifest)
        probes.append(Probe(ensemble=manifest.name, body=manifest.probe.model_dump(mode="json")))
    if not probes:
        raise ArtifactError(f"{repository} holds no packaged ensemble", hint="make one with: tritonize package")
    return probes


def ask(base_url: str, probe: Probe, *, timeout: float) -> dict[str, Any]:
    """Send the probe over HTTP and return Triton's answer.

    Raises:
        RequestError: Triton answered with an error.
        OSError: nobody answered.
    """
    url = f"{base_url}/v2/models/{probe.ensemble}/infer"
    request = urllib.request.Request(url, json.dumps(probe.body).encode())  # noqa: S310 - http only
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as error:
        message = error.read().decode(errors="replace")
        raise RequestError(f"{probe.ensemble}: {message}", status="UNAVAILABLE" if error.code == 503 else "INTERNAL") from error


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What Triton's statistics say of all ensembles together.

    Args:
        seen: requests that any step has finished so far.
        in_flight: requests that wait for the first step of an ensemble, or have passed it and not the last.
    """

    seen: int
    in_flight: int


def read_traffic(base_url: str, metrics_url: str, probes: list[Probe]) -> Traffic:
    """Ask for the statistics of every step, and for what waits before the first.

    Raises:
        OSError: nobody answered.
    """
    with urllib.request.urlopen(f"{base_url}/v2/models/stats", timeout=5) as response:  # noqa: S310
        statistics = {entry["name"]: entry["inference_stats"] for entry in json.load(response)["model_stats"]}
    with urllib.request.urlopen(metrics_url, timeout=5) as response:  # noqa: S310
        pending = {name: int(count) for name, count in PENDING.findall(response.read().decode())}
    seen = in_flight = 0
    for probe in probes:
        first, *later = (statistics[f"{probe.ensemble}_{step}"] for step in ("preprocess", "model", "postprocess"))
        failed = sum(step["fail"]["count"] for step in later)
        seen += first["success"]["count"] + first["fail"]["count"]
        in_flight += (
            pending.get(f"{probe.ensemble}_preprocess", 0) + first["success"]["count"] - later[-1]["success"]["count"] - failed
        )
    return Traffic(seen=seen, in_flight=in_flight)
