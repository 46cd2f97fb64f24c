"""Checkpoints of unusual architectures, compared with the library as ``export`` compares them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export import convert, graph, library_answers
from export.checkpoint import load_model, load_tokenizer, read_config, save_tokenizer
from export.model_inputs import bind_padding, fed_inputs
from export.output_head import add_output_head
from export.tasks import task_class
from export.tasks._encoder import ExportedEncoderTask
from serving.manifests import ReferenceCheck
from serving.runtime.tokenization import TextEncoder
from tests.helpers.checkpoints import make_tokenizer, randomize
from tests.helpers.reviews import review_rows

BART_LAYERS = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 80},
    "llama": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 80,
    },
    "big_bird": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 80,
        "block_size": 4,
        "num_random_blocks": 1,
    },
}
SIZES["qwen2"] = SIZES["llama"]
SIZES["bart"] = {
    "d_model": 32,
    **{f"{half}_{size}": number for half in ("encoder", "decoder") for size, number in BART_LAYERS.items()},
    "max_position_embeddings": 80,
    "eos_token_id": 3,
    "decoder_start_token_id": 3,
}
TEXTS = [text for text, _ in review_rows(8, seed=3)]
PLAIN_INPUTS = ["input_ids", "attention_mask"]
ALL_INPUTS = ["input_ids", "token_type_ids", "attention_mask"]
PAIRS = (TEXTS, [text for text, _ in review_rows(8, seed=4)])


def write_classifier(folder: Path, architecture: str, *, tokenizer: Any = None, **changes: Any) -> Path:
    """Write a tiny random classifier of an architecture, with a tokenizer of byte-level BPE."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    tokenizer = tokenizer or make_tokenizer("bpe")
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(architecture, **SIZES[architecture], **(ids | changes))
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    randomize(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edited(source: Path, folder: Path, name: str, **changes: Any) -> Path:
    """Copy a checkpoint with other values in one of its JSON files; None removes a key."""
    shutil.copytree(source, folder)
    content = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def compare(
    folder: Path,
    columns: tuple[list[str], ...] = (TEXTS,),
    *,
    task: str = "text-classification",
    max_length: int = 64,
    settings: Mapping[str, Any] | None = None,
    names: list[str] | None = None,
    padding: dict[str, int] | None = None,
    split_special_tokens: bool | None = None,
    opset: int = 18,
) -> ReferenceCheck:
    """Convert a checkpoint and compare it as ``export`` does; the last arguments replace what ``export`` would choose."""
    kind = task_class(task)
    assert issubclass(kind, ExportedEncoderTask)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, kind, tokenizer)
    bound: ExportedEncoderTask = kind.from_config(read_config(folder), pair=len(columns) == 2 and task == "text-classification")
    bound = bound.with_settings(settings or {}).with_tokenizer(tokenizer)
    values = bind_padding(tokenizer, model, str(folder))
    raw = convert.convert(folder, kind, folder / "graph", opset=opset)
    add_output_head(raw, bound)
    fed = graph.input_names(raw) if names is None else names
    if names is None and "token_type_ids" in fed and "token_type_ids" not in fed_inputs(tokenizer, model):
        graph.remove_token_types(raw)
        fed.remove("token_type_ids")
    save_tokenizer(tokenizer, folder / "served", max_length)
    encoder = TextEncoder(
        str(folder / "served" / "tokenizer.json"),
        max_length=max_length,
        names=fed,
        padding=values if padding is None else padding,
        split_special_tokens=tokenizer.split_special_tokens if split_special_tokens is None else split_special_tokens,
    )
    run = graph.runner(graph.session(raw), bound.model_outputs)
    served = library_answers.ServedGraph(task=bound, run=run, encoder=encoder, max_length=max_length)
    return library_answers.require_equal_answers(served, model, load_tokenizer(folder), columns, {})
