"""Small parts of Envoy's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EnvoyFields = dict[str, Any]
"""A message of Envoy's API as a dict."""
JSON_TYPE = ("content-type", "application/json")
"""Header of an answer in JSON."""


def address(where: Path | tuple[str, int]) -> EnvoyFields:
    """Return where to listen or to connect: a host and a port, or a socket."""
    if isinstance(where, Path):
        return {"pipe": {"path": str(where)}}
    return {"socket_address": {"address": where[0], "port_value": where[1]}}


def http_filter(name: str, kind: str, config: EnvoyFields) -> EnvoyFields:
    """Return an HTTP filter."""
    return {"name": name, "typed_config": {"@type": type_url(f"filters.http.{kind}")} | config}


def network_filter(name: str, config: EnvoyFields) -> EnvoyFields:
    """Return a network filter."""
    return {"name": name, "typed_config": config}


def type_url(name: str) -> str:
    """Return the name of the type of an extension."""
    return f"type.googleapis.com/envoy.extensions.{name}"


def overwritten(key: str, value: str) -> EnvoyFields:
    """Return a header to add, in place of one that is there."""
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def json_error(message: str) -> str:
    """Return the body of an error as Triton writes it."""
    return json.dumps({"error": message}, ensure_ascii=False)
