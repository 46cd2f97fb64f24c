"""A checkpoint and a bundle of text-generation that hold no weights, for what packaging does with files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models

from serving.artifact import checksums, inputs_record, write_manifest
from serving.options import PackageOptions
from serving.repository import package
from serving.runtime.tasks.text_generation import TextGeneration
from serving.vllm_options import VllmOptions
from tests.helpers.manifests import SPEED, bundle_manifest

TASK = TextGeneration(generation={"max_new_tokens": 256, "do_sample": True, "temperature": 0.7, "eos_token_id": 2}, vocab_size=100)


def write_checkpoint(folder: Path, *, dtype: str = "float32") -> Path:
    """A checkpoint as the Hub has them, with files that no stage reads."""
    folder.mkdir(parents=True)
    vocabulary = models.WordLevel({"<unk>": 0, "once": 1, "</s>": 2}, unk_token="<unk>")  # noqa: S106 - no password
    Tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    files: dict[str, Any] = {
        "config.json": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": dtype, "vocab_size": 100},
        "generation_config.json": {"eos_token_id": 2},
        "tokenizer_config.json": {"eos_token": "</s>"},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def write_bundle(folder: Path, checkpoint: Path, **changes: Any) -> Path:
    """A bundle that was exported from that checkpoint, without a graph."""
    (folder / "fp32").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    (folder / "fp32" / "model.onnx").write_bytes(b"graph")
    inputs = inputs_record({}, checksums(checkpoint), {"export/bundle.py": "0"})
    original = SPEED | {"perplexity": 9.0, "rows": 4, "bytes": 7, "checkpoint": {"name": "lily", "sha256": "5a5a"}}
    content = {"name": "lily", "task": TASK.name, "settings": TASK.to_settings(), "original": original, "labels": ()}
    write_manifest(folder, bundle_manifest(inputs, **content | {"max_length": 64, "max_positions": 128} | changes))
    return folder


def package_for_vllm(folder: Path, repository: Path) -> None:
    """The model ``lily`` for vLLM, in a repository that the server sees where it is."""
    checkpoint = write_checkpoint(folder / "checkpoint")
    bundle, vllm = write_bundle(folder / "bundle", checkpoint), VllmOptions(mount_path=str(repository))
    package(PackageOptions(name="lily", bundle=bundle, repository=repository, engine="vllm", vllm=vllm))
