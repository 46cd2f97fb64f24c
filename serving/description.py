"""What packaging writes about a checkpoint into the ensemble's Triton configuration, for the attributes of a client."""

from __future__ import annotations

import json
import os
from typing import Any

from tokenizers import Tokenizer

from serving.bundle import REMEDY, Bundle
from serving.errors import refusing
from serving.runtime.types import JsonValue

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def describe(bundle: Bundle, device: str) -> dict[str, JsonValue]:
    """Return what :class:`serving.pipeline_attributes.PipelineAttributes` reads: the config, the tokenizer and the device.

    Args:
        bundle: The bundle.
        device: ``cpu`` or ``gpu``.

    Raises:
        ArtifactError: ``config.json``, ``tokenizer.json`` or ``tokenizer_config.json`` is damaged.
    """
    with refusing(f"{bundle.folder} is damaged", hint=REMEDY):
        return {
            "config": _public(json.loads((bundle.folder / "config.json").read_text(encoding="utf-8"))),
            "tokenizer": _tokenizer(bundle),
            "device": "cuda" if device == "gpu" else device,
        }


def _public(config: dict[str, Any]) -> dict[str, JsonValue]:
    """Return the entries of ``config.json`` that are not private and hold no path of the machine that trained the model.

    A ``label2id`` that only inverts ``id2label`` is left out: there may be thousands of labels.
    """
    found = {key: value for key, value in config.items() if not key.startswith("_") and not _is_path(value)}
    if found.get("label2id") == {label: int(place) for place, label in found.get("id2label", {}).items()}:
        del found["label2id"]
    return found


def _is_path(value: object) -> bool:
    return isinstance(value, str) and os.sep in value


def _tokenizer(bundle: Bundle) -> dict[str, JsonValue]:
    tokenizer = Tokenizer.from_file(str(bundle.tokenizer))
    config = json.loads((bundle.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokens = {name: _text(config.get(name)) for name in SPECIAL_TOKENS}
    ids = {f"{name}_id": None if token is None else tokenizer.token_to_id(token) for name, token in tokens.items()}
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    return {"model_max_length": bundle.max_length, "vocab_size": size, "is_fast": True, **tokens, **ids}


def _text(token: object) -> str | None:
    """Return the text of a token, which may be described in full."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
