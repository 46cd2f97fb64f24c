"""Tiny encoder-decoders of each family with random weights that generate many different tokens."""

from __future__ import annotations

from typing import Any

VOCABULARY = 200
SPECIAL = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
LIKE_BART: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 128,
    "vocab_size": VOCABULARY,
    **SPECIAL,
}
LIKE_T5: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "t5": LIKE_T5,
    "t5-gated": LIKE_T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mt5": LIKE_T5 | {"tie_word_embeddings": False},
    "umt5": LIKE_T5 | {"tie_word_embeddings": False},
    "longt5": LIKE_T5 | {"encoder_attention_type": "local", "local_radius": 4},
    "longt5-global": LIKE_T5 | {"encoder_attention_type": "transient-global", "local_radius": 4, "global_block_size": 4},
    "bart": LIKE_BART | {"decoder_start_token_id": 2, "forced_bos_token_id": 0, "forced_eos_token_id": 2},
    "mbart": LIKE_BART | {"scale_embedding": True, "decoder_start_token_id": 7, "forced_eos_token_id": 2},
    "marian": LIKE_BART | {"decoder_start_token_id": 1, "forced_eos_token_id": 2},
    "pegasus": LIKE_BART | {"scale_embedding": True, "decoder_start_token_id": 1, "forced_eos_token_id": 2},
    "m2m_100": LIKE_BART | {"scale_embedding": True, "decoder_start_token_id": 2},
    "blenderbot": LIKE_BART | {"scale_embedding": True, "decoder_start_token_id": 0},
    "blenderbot-small": LIKE_BART | {"decoder_start_token_id": 0},
}
"""Settings by name, which is that of the family but for those in :data:`FAMILIES`."""
FAMILIES = {"t5-gated": "t5", "longt5-global": "longt5"}
"""Families of names that are not the family's."""
LENGTHS = (5, 17, 1, 30, 9, 3, 12, 2, 26, 7, 4, 14, 1, 21, 6, 11)
SOURCES = [[(7 * at * (at + 3) + 13 * number) % 190 + 5 for at in range(1, length + 1)] for number, length in enumerate(LENGTHS)]
"""Tokens of sources of mixed lengths."""


GAIN = 2.5


def tiny_encoder_decoder(name: str, seed: int = 0, **settings: Any) -> Any:
    """A model in evaluation mode whose answers depend on all that it reads: its weights, its biases and its source matter."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    torch.set_num_threads(1)  # more only wait for each other in so small a model
    torch.manual_seed(seed)
    config = AutoConfig.for_model(FAMILIES.get(name, name), **CONFIGURATIONS[name] | settings)
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for module in model.modules():
            if "Sinusoidal" in type(module).__name__:
                continue
            for role, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if role == "weight" and tensor.dim() == 1:  # of a norm: signs, so that a tied head does not repeat its input
                    tensor.copy_(torch.randn(tensor.shape).sign())
                elif tensor.is_floating_point():
                    position = isinstance(module, torch.nn.Embedding) and tensor.shape[0] != VOCABULARY
                    tensor.normal_(0.0, 0.1 if "bias" in role else 2.0 if position else GAIN * tensor.shape[-1] ** -0.5)
        model.tie_weights()
    return model
