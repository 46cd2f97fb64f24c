"""Tiny decoders of random weights, one of each architecture that the export takes, and texts of made-up tokens."""

from __future__ import annotations

from typing import Any

VOCABULARY = 320
POSITIONS = 96
_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}
_OLDER = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}
_WINDOW = {"sliding_window": 6}
_UNTIED = {"tie_word_embeddings": False}
_GEMMA = _LLAMA | {"head_dim": 16}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA | _WINDOW,
    "qwen2": _LLAMA | _WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": _LLAMA | {"head_dim": 16},
    "gemma": _GEMMA,
    "gemma2": _GEMMA | _WINDOW | _UNTIED | {"query_pre_attn_scalar": 24},
    "gemma3_text": _GEMMA | _WINDOW | _UNTIED | {"layer_types": ["sliding_attention", "full_attention"]},
    "phi": _LLAMA | {"num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "phi3": _LLAMA | _WINDOW | {"pad_token_id": 0},
    "granite": _LLAMA | {f"{part}_multiplier": 0.9 for part in ("attention", "embedding", "residual")} | {"logits_scaling": 0.5},
    "olmo2": _LLAMA,
    "smollm3": _LLAMA | {"no_rope_layer_interval": 2, "pad_token_id": 0},
    "starcoder2": _LLAMA | _WINDOW,
    "gpt2": _OLDER,
    "gpt_neox": _LLAMA | {"rotary_pct": 0.5},
    "gpt_bigcode": _OLDER,
    "opt": {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32,
            "max_position_embeddings": POSITIONS},
    "olmo": _LLAMA,
    "olmo3": _LLAMA | _WINDOW,
    "exaone4": _LLAMA | _WINDOW | {"sliding_window_pattern": 2},
    "persimmon": _LLAMA | {"num_key_value_heads": 4},
    "biogpt": _LLAMA | {"scale_embedding": False},
    "seed_oss": _LLAMA | {"head_dim": 16},
    "arcee": _LLAMA,
    "hunyuan_v1_dense": _LLAMA | {"head_dim": 8},
    "bitnet": _LLAMA,
    "vaultgemma": _LLAMA | _WINDOW | {"head_dim": 16},
}  # fmt: skip
"""Settings by architecture."""
SEEDS = {"persimmon": 3, "phi": 4, "olmo2": 2, "starcoder2": 1, "gpt_neox": 2}
"""Seeds of the weights that give answers of many tokens, where 0 does not."""


def make_decoder(architecture: str, **settings: Any) -> Any:
    """A model whose greedy answers have many different tokens: its weights are large, its biases and norms matter."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    common = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True}
    config = AutoConfig.for_model(architecture, **common | DECODERS.get(architecture, _LLAMA) | settings)
    torch.manual_seed(SEEDS.get(architecture, 0))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                looked_up = any(part in name for part in ("embed", "wte", "wpe"))
                parameter.normal_(
                    0,
                    (0.15 if any(digit in architecture for digit in "234") else 0.6)
                    if looked_up
                    else 3.0 / parameter.shape[-1] ** 0.5,
                )
            else:
                mean = ("norm" in name.lower() or "ln_" in name) and name.endswith("weight")
                parameter.normal_(float(mean), 0.2)
    return model


def made_up_rows(count: int, *, longest: int, seed: int = 0) -> list[list[int]]:
    """Rows of 2 to ``longest`` tokens."""
    import numpy as np

    numbers = np.random.default_rng(seed)
    return [numbers.integers(3, VOCABULARY, size).tolist() for size in numbers.integers(2, longest + 1, count)]
