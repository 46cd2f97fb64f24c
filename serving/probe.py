"""Health checks by real inference. Triton's readiness report is not enough: a model whose stub process died still reports ready."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.answer_comparison import TOLERANCES, first_difference
from serving.artifact import read_manifest
from serving.errors import ArtifactError, RequestError, ServerError
from serving.layout import current_generation, generation_folder, package_names
from serving.manifests import ExpectedTensor, RepositoryManifest
from serving.model_names import is_single_model, step_models
from serving.triton_address import fetch

PENDING_METRIC = "nv_inference_pending_request_count"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One inference request to one ensemble.

    Attributes:
        ensemble: The name of the ensemble.
        body: The request in Triton's JSON form.
        endpoint: Where Triton takes it: ``infer``, or ``generate`` for a model that streams.
        expected: The tensors of the answer that packaging computed; empty if it could not.
        models: The names of the Triton models that execute it, the first one first.
        tolerance: How far their numbers may be off, see :data:`serving.answer_comparison.TOLERANCES`.
    """

    ensemble: str
    body: dict[str, Any]
    models: tuple[str, ...]
    endpoint: str = "infer"
    expected: tuple[ExpectedTensor, ...] = ()
    tolerance: float = 0.0

    def curl(self, base_url: str) -> str:
        """Return a curl command line that sends the request."""
        return f"curl -s {base_url}{self.path} -d {shlex.quote(json.dumps(self.body, ensure_ascii=False))}"

    @property
    def path(self) -> str:
        """The path of the request."""
        return f"/v2/models/{self.ensemble}/{self.endpoint}"


def find_probes(repository: Path, *, all_texts: bool = False) -> list[Probe]:
    """Return the probes of each ensemble that tritonize packaged into ``repository``.

    Args:
        repository: The model repository, or what a server serves of it (:mod:`serving.served_view`).
        all_texts: Return one probe for each text whose answer packaging recorded, instead of one for each ensemble.

    Raises:
        ArtifactError: The repository holds no such ensemble, or an older version of tritonize packaged one.
    """
    probes: list[Probe] = []
    for name in package_names(repository):
        generation = current_generation(repository, name)
        if generation is not None:
            manifest = read_manifest(generation_folder(repository, name, generation), RepositoryManifest)
            probes += probes_of(manifest, name, all_texts=all_texts)
    if not probes:
        raise ArtifactError(f"{repository} holds no packaged ensemble", hint="create one with: tritonize package")
    return probes


def probes_of(manifest: RepositoryManifest, model: str, *, all_texts: bool) -> list[Probe]:
    """Return the probes of one generation of an ensemble.

    Args:
        manifest: The manifest of the generation.
        model: The model that is asked: the ensemble, or that of the generation.
        all_texts: As for :func:`find_probes`.
    """
    bodies = [(answer.request, answer.outputs) for answer in manifest.answers] or [(manifest.probe, ())]
    single = is_single_model(manifest.layout)
    return [
        Probe(
            ensemble=model,
            body=request.body,
            endpoint=request.endpoint,
            models=(model,) if single else step_models(manifest.name, manifest.generation),
            expected=outputs,
            tolerance=TOLERANCES[manifest.precision],
        )
        for request, outputs in (bodies if all_texts else bodies[:1])
    ]


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
    status, content = fetch(base_url, probe.path, json.dumps(probe.body).encode(), timeout=timeout)
    if status != 200:
        message = content.decode(errors="replace")
        raise RequestError(f"{probe.ensemble}: {message}", status="UNAVAILABLE" if status == 503 else "INTERNAL")
    answer: dict[str, Any] = json.loads(content)
    return answer if probe.endpoint == "infer" else _as_inference(answer)


def _as_inference(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Give the answer of the endpoint ``generate``, which has the elements of each output, the form of that of ``infer``."""
    listed = {name: value if isinstance(value, list) else [value] for name, value in answer.items()}
    outputs = [
        {"name": name, "datatype": "BYTES" if isinstance(data[0], str) else "INT64", "shape": [len(data)], "data": data}
        for name, data in listed.items()
        if name not in ("model_name", "model_version") and data
    ]
    return {"outputs": outputs}


def check_answers(probe: Probe, answer: Mapping[str, Any]) -> None:
    """Compare the answer to a probe with the one that packaging recorded. Further outputs are not compared.

    With batching, an int8 answer depends on the other requests in its batch: then it can only be compared on an idle server.

    Args:
        probe: The probe.
        answer: What :func:`ask` returned for it.

    Raises:
        ServerError: The answer is another one.
    """
    outputs = {output["name"]: output for output in answer["outputs"]}
    for tensor in probe.expected:
        if difference := first_difference(tensor, outputs.get(tensor.name), probe.tolerance):
            raise ServerError(
                f"{probe.ensemble} does not answer as it did when it was packaged: {difference}",
                hint=f"package it again on this machine with: tritonize package --name {probe.ensemble} --force",
            )


def is_ready(base_url: str) -> bool:
    """Return whether Triton reports that it is ready."""
    try:
        return fetch(base_url, "/v2/health/ready", timeout=5)[0] == 200
    except OSError:
        return False


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Request counts from Triton's statistics.

    Attributes:
        first_step_ended: Requests of all ensembles whose first step has ended so far, with or without success.
        in_flight: Requests that wait for the first step of their ensemble, or that have passed it but not the last one.
        answered: Requests that the last step has answered so far, by ensemble.
    """

    first_step_ended: int
    in_flight: int
    answered: dict[str, int]


def read_traffic(base_url: str, metrics_url: str, probes: list[Probe], *, timeout: float = 5) -> Traffic:
    """Read the statistics of every step, and the number of requests that wait for the first one.

    Args:
        base_url: The base URL of the HTTP API.
        metrics_url: The base URL of the metrics.
        probes: The ensembles.
        timeout: Time limit of each of the two requests, in seconds.

    Raises:
        OSError: The server did not answer.
    """
    status, content = fetch(base_url, "/v2/models/stats", timeout=timeout)
    if status != 200:
        raise ConnectionError(f"{base_url}: the statistics were refused with status {status}")
    statistics = {entry["name"]: entry["inference_stats"] for entry in json.loads(content)["model_stats"]}
    pending = pending_requests(fetch(metrics_url, "/metrics", timeout=timeout)[1].decode())
    first_step_ended = in_flight = 0
    answered: dict[str, int] = {}
    for probe in probes:
        if missing := [model for model in probe.models if model not in statistics]:
            raise ConnectionError(f"{base_url}: there are no statistics of {missing[0]}, which may be unloading")
        first, last = statistics[probe.models[0]], statistics[probe.models[-1]]
        failed = sum(statistics[model]["fail"]["count"] for model in probe.models[1:])
        first_step_ended += first["success"]["count"] + first["fail"]["count"]
        answered[probe.ensemble] = last["success"]["count"]
        in_flight += pending.get(probe.models[0], 0) + first["success"]["count"] - last["success"]["count"] - failed
    return Traffic(first_step_ended=first_step_ended, in_flight=in_flight, answered=answered)


def pending_requests(metrics: str) -> dict[str, int]:
    """Read from Triton's Prometheus metrics how many requests wait for each model.

    Args:
        metrics: The metrics in Prometheus text format.
    """
    from prometheus_client.parser import text_string_to_metric_families  # only a running server's supervisor needs it

    own = "".join(
        f"{line}\n" for line in metrics.splitlines() if line.startswith(PENDING_METRIC)
    )  # parsing all takes ten times as long
    samples = (sample for family in text_string_to_metric_families(own) for sample in family.samples)
    return {sample.labels["model"]: int(sample.value) for sample in samples if sample.name == PENDING_METRIC}
