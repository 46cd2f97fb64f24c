"""Model configurations as Triton reads them: a dict becomes Triton's own protobuf message, and that becomes text."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2


def to_pbtxt(config: dict[str, Any]) -> str:
    """A ``config.pbtxt`` from a dict in the message's own field names.

    Raises:
        json_format.ParseError: a field or an enum value that Triton's ``ModelConfig`` does not have.
    """
    message = json_format.ParseDict(config, model_config_pb2.ModelConfig())
    text: str = text_format.MessageToString(message)
    return text


def from_pbtxt(text: str) -> dict[str, Any]:
    """Inverse of :func:`to_pbtxt`.

    Raises:
        text_format.ParseError: the text is no ``ModelConfig``.
    """
    message = text_format.Parse(text, model_config_pb2.ModelConfig())
    config: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return config
