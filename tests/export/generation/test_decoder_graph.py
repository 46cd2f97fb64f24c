"""Decoders of each architecture give the tokens of ``transformers``; those that the graph would compute otherwise are refused."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function

from export import graph
from export.generation.decoder_graph import export_decoder, max_tokens
from export.generation.slotted_attention import FAMILIES, SlottedAttention, VisibleKeys
from export.generation.slotted_decoder import SlottedDecoder
from export.generation.token_comparison import compare_tokens
from serving.errors import ExportError
from tests.export.generation.conftest import ExportedDecoder
from tests.helpers.decoders import DECODERS, POSITIONS, VOCABULARY, made_up_rows, make_decoder

FIRST = ("llama", "gpt2", "qwen3", "gemma2", "opt")
"""Architectures of every run: with and without rotary embeddings, norms of heads, windows and soft caps."""
EACH = [pytest.param(name, marks=() if name in FIRST else pytest.mark.long) for name in DECODERS]

Exported = Callable[[str], ExportedDecoder]
PROMPTS = made_up_rows(8, longest=20)
WINDOWS = {
    "mistral": [6, 6],
    "qwen2": [None, 6],
    "gemma2": [6, None],
    "gemma3_text": [6, None],
    "phi3": [6, 6],
    "starcoder2": [6, 6],
    "olmo3": [6, 6],
    "exaone4": [6, None],
    "vaultgemma": [6, None],
}


def test_every_tested_architecture_is_here() -> None:
    assert sorted(FAMILIES) == sorted(DECODERS)


@pytest.mark.parametrize("architecture", EACH)
def test_answers_are_those_of_transformers(exported: Exported, architecture: str) -> None:
    """Prompts of different lengths begin together; alone they do in ``generate``."""
    decoder = exported(architecture)
    expected = [decoder.original.greedy(prompt, new_tokens=24, end=[2]) for prompt in PROMPTS]
    assert len({token for answer in expected for token in answer}) >= 40, "the answers tell something"
    assert decoder.load(rows=len(PROMPTS)).greedy(PROMPTS, new_tokens=24, end=[2]) == expected
    assert [layer.window for layer in decoder.layout.layers] == WINDOWS.get(architecture, [None, None])
    assert decoder.layout.windows == (architecture in WINDOWS)
    assert decoder.layout.vocabulary == VOCABULARY
    assert decoder.layout.max_tokens == POSITIONS


@pytest.mark.parametrize("architecture", EACH)
def test_logits_are_those_of_pytorch(exported: Exported, architecture: str) -> None:
    """Also beyond the windows, and where rows of the batch have ended."""
    decoder = exported(architecture)
    found = compare_tokens(decoder.original.logits, decoder.load(rows=3), made_up_rows(5, longest=12, seed=1))
    assert found.max_logit_difference is not None
    assert found.max_logit_difference < 1e-5 * max(1, found.largest_logit)
    assert found.agrees.all()


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_in_fp16_the_weights_and_the_cache_are_fp16(exported: Exported, architecture: str, tmp_path: Path) -> None:
    model = exported(architecture).model
    path = tmp_path / "model.onnx"
    export_decoder(copy.deepcopy(model).half(), path)
    decoder = SlottedDecoder(path, rows=4, capacity=POSITIONS, threads=1)
    session = graph.session(path)
    types = {one.name.partition(".")[0]: one.type for one in (*session.get_inputs(), *session.get_outputs())}
    assert (types["past"], types["present"], types["logits"]) == ("tensor(float16)", "tensor(float16)", "tensor(float)")
    weights = graph.load(path).graph.initializer
    assert max(weights, key=lambda one: len(one.raw_data)).data_type == TensorProto.FLOAT16
    found = compare_tokens(exported(architecture).original.logits, decoder, made_up_rows(4, longest=12, seed=1))
    assert found.max_logit_difference is not None
    assert 1e-4 < found.max_logit_difference < 0.05 * found.largest_logit
    assert found.agrees.mean() > 0.9


def test_a_model_is_the_same_after_its_export(tmp_path: Path) -> None:
    model = make_decoder("llama")
    before, attention = model(torch.tensor([PROMPTS[0]])).logits, model.config._attn_implementation
    known = [set(one._global_mapping) for one in (AttentionInterface, AttentionMaskInterface)]
    export_decoder(model, tmp_path / "model.onnx")
    assert torch.equal(model(torch.tensor([PROMPTS[0]])).logits, before)
    assert model.config._attn_implementation == attention
    assert [set(one._global_mapping) for one in (AttentionInterface, AttentionMaskInterface)] == known


@pytest.mark.parametrize(("architecture", "copies"), [("llama", 1), ("gemma2", 2)])
def test_tied_embeddings_are_stored_once(exported: Exported, architecture: str, copies: int) -> None:
    decoder = exported(architecture)
    tables = [tensor for tensor in graph.load(decoder.path).graph.initializer if VOCABULARY in tensor.dims]
    assert len(tables) == copies
    assert decoder.layout.shared_embeddings == (copies == 1)


def test_large_weights_lie_beside_the_graph(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "EXTERNAL_ABOVE", 1000)
    export_decoder(exported("llama").model, tmp_path / "large" / "model.onnx")
    shutil.move(tmp_path / "large", tmp_path / "moved")
    assert sorted(file.name for file in (tmp_path / "moved").iterdir()) == ["model.onnx", "model.onnx.data"]
    moved = SlottedDecoder(tmp_path / "moved" / "model.onnx", rows=8, capacity=POSITIONS, threads=1)
    assert np.array_equal(moved.begin(PROMPTS), exported("llama").load(rows=8).begin(PROMPTS))


OLDER = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS, "hidden_size": 32, "num_attention_heads": 4}
UNSUPPORTED: dict[str, dict[str, Any]] = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "codegen": OLDER | {"n_ctx": POSITIONS, "rotary_dim": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": POSITIONS},
    "gptj": OLDER | {"rotary_dim": 4},
    "falcon": {"num_hidden_layers": 2},
    "stablelm": {},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "mamba": {"num_hidden_layers": 2},
    "glm": {"pad_token_id": 0},  # which has the interface, but cannot be traced
}


@pytest.mark.parametrize("architecture", UNSUPPORTED)
def test_an_architecture_with_its_own_attention_is_refused(
    architecture: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_decoder(architecture, **UNSUPPORTED[architecture])
    with pytest.raises(ExportError, match=f"the architecture '{architecture}' cannot be exported for generation: ") as caught:
        export_decoder(model, tmp_path / "model.onnx")
    assert "llama, mistral" in caught.value.hint
    assert "\n" not in caught.value.message_with_hint
    assert not list(tmp_path.iterdir())
    assert not capfd.readouterr().out, "the tracer prints the graph that it failed at"


REFUSED = {
    "experts": ("mixtral", {"num_local_experts": 2}, "the architecture 'mixtral' is a mixture of experts"),
    "scale": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True in config.json cannot"),
    "both ways": ("gemma3_text", {"use_bidirectional_attention": True}, "layer 0 does not see exactly the last 4 tokens"),
    "head size": ("llama", {"head_dim": 12}, "layer 0 has 4 heads of size 12 over 2 key heads, but ONNX Runtime needs"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_attention_that_the_operator_does_not_know_is_refused(kind: str, tmp_path: Path) -> None:
    architecture, settings, message = REFUSED[kind]
    with pytest.raises(ExportError, match=message):
        export_decoder(make_decoder(architecture, **settings), tmp_path / "model.onnx")


def test_an_argument_of_attention_that_the_operator_does_not_know_is_named() -> None:
    """GPT-OSS gives its layers sinks; another argument may come with a newer release of the library."""
    attention, heads = SlottedAttention(), torch.zeros(1, 2, 3, 8)
    attention.begin(None, torch.tensor([2]), torch.tensor(3))
    with pytest.raises(ExportError, match="layer 4 gives its attention newer, s_aux, which ONNX Runtime's GroupQueryAttention"):
        attention.attend(
            SimpleNamespace(layer_idx=4), heads, heads, heads, None, s_aux=heads, newer=False, dropout=0.0, head_mask=None
        )
    with pytest.raises(ExportError, match="layer 5 has keys and values of different sizes"):
        attention.attend(SimpleNamespace(layer_idx=5), heads, heads, torch.zeros(1, 2, 3, 16), None)
    with pytest.raises(ExportError, match=r"an attention layer \(SimpleNamespace\) has no index"):
        attention.attend(SimpleNamespace(), heads, heads, heads, None)


def test_two_layers_of_one_index_are_refused(tmp_path: Path) -> None:
    model = make_decoder("llama")
    model.model.layers[1].self_attn.layer_idx = 0
    with pytest.raises(ExportError, match=r"an attention layer \(LlamaAttention\) has the index 0, as another one"):
        export_decoder(model, tmp_path / "model.onnx")


def windowed(window: int) -> Callable[..., torch.Tensor]:
    return lambda row, head, query, key: causal_mask_function(row, head, query, key) & (key > query - window)


def chunked(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return causal_mask_function(row, head, query, key) & (key // 8192 == query // 8192)


def everything(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return key >= 0


def only_others(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return key < query


@pytest.mark.parametrize(
    ("function", "window", "causal"),
    [
        (causal_mask_function, None, True),
        (causal_mask_function, 6, False),
        (windowed(6), 6, True),
        (windowed(6), 7, False),
        (windowed(6), 5, False),
        (windowed(4096), None, False),
        (chunked, None, False),
        (chunked, 8192, False),
        (everything, None, False),
        (only_others, None, False),
    ],
)
def test_a_mask_is_compared_with_what_the_operator_shows(function: Any, window: int | None, causal: bool) -> None:
    assert VisibleKeys(function).is_causal(window) == causal


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({}, None),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 131072),
        ({"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_scaling": {"type": "longrope"}}, 4096),
        ({"max_position_embeddings": 2048, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 2048),
    ],
)
def test_rows_end_where_the_rotary_frequencies_would_change(config: dict[str, Any], limit: int | None) -> None:
    assert max_tokens(config) == limit


def test_a_full_cache_is_an_error(exported: Exported) -> None:
    decoder = SlottedDecoder(exported("llama").path, rows=2, capacity=4, threads=1)
    for prompts in ([[3] * 5], [[3]] * 3):
        with pytest.raises(ValueError, match="the cache holds 2 rows of 4 tokens"):
            decoder.begin(prompts)


def test_a_graph_that_cannot_run_is_an_error(exported: Exported) -> None:
    decoder = exported("llama").load(rows=2)
    with pytest.raises(ExportError, match="ONNX Runtime cannot run the graph: "):
        decoder.begin([[VOCABULARY]])


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ({}, "the graph has no cache in FP32 or FP16"),
        ({"past.0.key": (TensorProto.INT8, ["rows", 2, "capacity", 8])}, "the graph has no cache in FP32 or FP16"),
        ({"past.0.key": (TensorProto.FLOAT, ["rows", "heads", "capacity", 8])}, "the cache of the graph has no fixed heads"),
    ],
)
def test_a_graph_without_a_cache_of_slots_is_an_error(cache: dict[str, Any], message: str, tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info(name, *shape) for name, shape in cache.items()]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.FLOAT, ["rows", 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", 4])
    made = helper.make_graph([helper.make_node("Identity", ["input_ids"], ["logits"])], "none", [ids, *inputs], [logits])
    graph.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=message):
        SlottedDecoder(tmp_path / "model.onnx", rows=1, capacity=4)


def test_opset_17_is_enough(exported: Exported, tmp_path: Path) -> None:
    export_decoder(exported("llama").model, tmp_path / "model.onnx", opset=17)
    assert next(one.version for one in onnx.load(tmp_path / "model.onnx").opset_import if not one.domain) == 17
    older = SlottedDecoder(tmp_path / "model.onnx", rows=8, capacity=POSITIONS, threads=1)
    assert np.abs(older.begin(PROMPTS) - exported("llama").load(rows=8).begin(PROMPTS)).max() < 1e-4
