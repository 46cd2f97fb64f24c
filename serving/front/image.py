"""Prints the configuration of the proxy beside the image: ``python -m serving.front.image > serving/docker/envoy.json``.

The proxy and Triton run in two containers that share the folder of their sockets and mount the model repository.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from serving.front.bootstrap import envoy_bootstrap
from serving.front.front_plan import FrontPlan
from serving.options import ServeOptions

SOCKETS = Path("/run/tritonize")
MODELS = Path("/models")
EVERYWHERE = "0.0.0.0"  # noqa: S104 - the container publishes its ports where its user says
IN_FLIGHT = 128


def image_plan() -> FrontPlan:
    """Return what the configuration of the image depends on."""
    return FrontPlan(
        repository=MODELS,
        http=(EVERYWHERE, ServeOptions.http_port),
        grpc=(EVERYWHERE, ServeOptions.grpc_port),
        metrics=(EVERYWHERE, ServeOptions.metrics_port),
        triton_http=SOCKETS / "http",
        triton_grpc=SOCKETS / "grpc:1",
        triton_metrics=SOCKETS / "metrics",
        admin=SOCKETS / "admin",
        starts_open=True,
        in_flight=IN_FLIGHT,
        queue=ServeOptions.queue,
        max_request_bytes=int(ServeOptions.max_request_mib * 2**20),
        streams=True,
    )


if __name__ == "__main__":
    click.echo(json.dumps(envoy_bootstrap(image_plan()), indent=1))
