"""Triton's ``config.pbtxt`` format, read and written through Triton's own protobuf message ``ModelConfig``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2


def to_pbtxt(config: Mapping[str, object]) -> str:
    """Return the ``config.pbtxt`` text for a configuration.

    Args:
        config: The configuration, with the field names of ``ModelConfig``.

    Raises:
        json_format.ParseError: ``ModelConfig`` has no such field or enum value.
    """
    message = json_format.ParseDict(config, model_config_pb2.ModelConfig())
    text: str = text_format.MessageToString(message)
    return text


def from_pbtxt(text: str) -> dict[str, Any]:
    """Return the configuration in a ``config.pbtxt`` text. This is the inverse of :func:`to_pbtxt`.

    Raises:
        text_format.ParseError: The text is not a ``ModelConfig``.
    """
    message = text_format.Parse(text, model_config_pb2.ModelConfig())
    config: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return config
