"""The options of ``transformers.generate``: the library's defaults, and what the server makes of those that it does not have."""

from __future__ import annotations

from ..types import JsonValue

LIBRARY_DEFAULTS: dict[str, JsonValue] = {
    "max_length": 20,
    "max_new_tokens": None,
    "min_length": 0,
    "min_new_tokens": None,
    "early_stopping": False,
    "max_time": None,
    "stop_strings": None,
    "do_sample": False,
    "num_beams": 1,
    "use_cache": True,
    "cache_implementation": None,
    "cache_config": None,
    "return_legacy_cache": None,
    "prefill_chunk_size": None,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "renormalize_logits": False,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "token_healing": False,
    "guidance_scale": None,
    "watermarking_config": None,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "output_logits": None,
    "return_dict_in_generate": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "encoder_no_repeat_ngram_size": 0,
    "decoder_start_token_id": None,
    "is_assistant": False,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4,
    "prompt_lookup_num_tokens": None,
    "max_matching_ngram_size": None,
    "assistant_early_exit": None,
    "assistant_lookbehind": 10,
    "target_lookbehind": 10,
    "compile_config": None,
    "disable_compile": False,
    "low_memory": None,
    "penalty_alpha": None,
    "dola_layers": None,
    "diversity_penalty": 0.0,
    "num_beam_groups": 1,
    "constraints": None,
    "force_words_ids": None,
}
"""The attributes of ``transformers.GenerationConfig()`` 4.57, without those of :data:`METADATA`."""
METADATA = ("transformers_version", "_from_model_config", "_commit_hash")
"""Its attributes that say where it comes from."""
WITHOUT_EFFECT = frozenset(
    {
        *METADATA,
        "use_cache",
        "cache_implementation",
        "cache_config",
        "return_legacy_cache",
        "prefill_chunk_size",
        "compile_config",
        "disable_compile",
        "low_memory",
        "synced_gpus",
        "prompt_lookup_num_tokens",
        "max_matching_ngram_size",
        "assistant_early_exit",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "target_lookbehind",
        "use_model_defaults",
        "remove_invalid_values",
        "decoder_start_token_id",
    }
)
"""Options of which any value is accepted: in ``generate`` they change speed or memory, but not the answer.

``use_model_defaults`` chooses between defaults that are one here, and ``remove_invalid_values`` changes logits that are refused.
``decoder_start_token_id`` is an option of tasks whose model has an encoder; other models do not read it.
"""
ARGUMENTS = (
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "assistant_model",
    "assistant_tokenizer",
    "streamer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "custom_generate",
)
"""Arguments of ``generate`` that are no attributes of its config, and that a request cannot have."""
INSTEAD = {
    "generation_config": "give its entries as options",
    "streamer": "use stream_text",
    "logprobs": "only false or null is accepted, which asks for nothing",
}
"""What to do instead of giving an option that is not supported."""
