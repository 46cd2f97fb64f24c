"""Tiny fresh checkpoints of models that write text, made offline."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.checkpoints import vocabulary_model
from tests.helpers.slow_tokenizers import write_m2m100_files, write_marian_files

LANGUAGES = ("eng_Latn", "deu_Latn")


def _tokenizer(kind: str, template: str, **special: str) -> Any:
    """One that knows the reviews' words; but for GPT-2's, whose config says it, it takes 48 tokens."""
    from tokenizers import Tokenizer, decoders, processors
    from transformers import PreTrainedTokenizerFast

    model, split = vocabulary_model(kind, list(dict.fromkeys(special.values())))
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = {"bpe": decoders.ByteLevel, "unigram": decoders.Metaspace}[kind]()
    used = [(token, tokenizer.token_to_id(token)) for token in special.values() if token in template]
    if used:
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    names = {f"{role}_token": token for role, token in special.items()}
    read = ["input_ids", "attention_mask"]
    length = {} if template == "$A" else {"model_max_length": 48}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=read, **length, **names)


def gpt2() -> tuple[Any, Any]:
    from transformers import GPT2Config

    tokenizer = _tokenizer("bpe", "$A", eos="<|endoftext|>")  # no token for padding, as GPT-2 has none
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=48, eos_token_id=0, bos_token_id=0)
    return tokenizer, config


def _llama() -> tuple[Any, Any]:
    from transformers import LlamaConfig

    tokenizer = _tokenizer("unigram", "<s> $A", bos="<s>", unk="<unk>", eos="</s>", pad="<pad>")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return tokenizer, LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=48, bos_token_id=0, eos_token_id=2, pad_token_id=3, **sizes
    )


def _t5() -> tuple[Any, Any]:
    from transformers import T5Config

    tokenizer = _tokenizer("unigram", "$A </s>", pad="<pad>", unk="<unk>", eos="</s>")
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    prefixes = {"summarization": "again: ", "translation_en_to_de": "to German: "}
    own = {task: {"prefix": prefix, "num_beams": 4} for task, prefix in prefixes.items()}
    asked = {"task_specific_params": own}
    return tokenizer, T5Config(
        vocab_size=len(tokenizer), dropout_rate=0, decoder_start_token_id=0, eos_token_id=2, **sizes, **asked
    )


def _seq2seq_sizes() -> dict[str, Any]:
    both = {"layers": 1, "attention_heads": 4, "ffn_dim": 64}
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in both.items()}
    return sizes | {"d_model": 32, "max_position_embeddings": 48, "dropout": 0.0}


def _bart() -> tuple[Any, Any]:
    from transformers import BartConfig

    tokenizer = _tokenizer("bpe", "<s> $A </s>", bos="<s>", pad="<pad>", eos="</s>", unk="<unk>")
    return tokenizer, BartConfig(vocab_size=len(tokenizer), bos_token_id=0, pad_token_id=1, eos_token_id=2, **_seq2seq_sizes())


def _nllb() -> tuple[Any, Any]:
    from transformers import M2M100Config, NllbTokenizerFast

    plain = _tokenizer("unigram", "$A", bos="<s>", unk="<unk>", pad="<pad>", eos="</s>")
    tokenizer = NllbTokenizerFast(
        tokenizer_object=plain.backend_tokenizer, additional_special_tokens=list(LANGUAGES), src_lang=LANGUAGES[0],
        tgt_lang=LANGUAGES[1], model_max_length=48,
    )  # fmt: skip
    ids = {role: tokenizer.convert_tokens_to_ids(token) for role, token in (("pad", "<pad>"), ("eos", "</s>"), ("bos", "<s>"))}
    named = {f"{role}_token_id": value for role, value in ids.items()} | {"decoder_start_token_id": ids["eos"]}
    return tokenizer, M2M100Config(vocab_size=len(tokenizer), **named, **_seq2seq_sizes())


def _files_of(write: Callable[[Path], Path], kind: str) -> Any:
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        return getattr(transformers, kind).from_pretrained(write(Path(folder)))


def _marian() -> tuple[Any, Any]:
    from transformers import MarianConfig

    tokenizer = _files_of(write_marian_files, "MarianTokenizer")
    pad = tokenizer.pad_token_id
    return tokenizer, MarianConfig(
        vocab_size=len(tokenizer),
        eos_token_id=0,
        pad_token_id=pad,
        decoder_start_token_id=pad,
        forced_eos_token_id=0,
        **_seq2seq_sizes(),
    )


def _m2m100() -> tuple[Any, Any]:
    from transformers import M2M100Config

    tokenizer = _files_of(write_m2m100_files, "M2M100Tokenizer")
    return tokenizer, M2M100Config(
        vocab_size=len(tokenizer), bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, **_seq2seq_sizes()
    )


KINDS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "gpt2": gpt2,
    "llama": _llama,
    "t5": _t5,
    "bart": _bart,
    "nllb": _nllb,
    "marian": _marian,
    "m2m100": _m2m100,
}


def write_checkpoint(architecture: str, folder: Path, *, positions: int | None = None) -> Path:
    """A fresh checkpoint in ``folder``. ``positions``: tokens that model and tokenizer take, in place of 48."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    tokenizer, config = KINDS[architecture]()
    if positions is not None:
        tokenizer.model_max_length = positions
        if hasattr(config, "max_position_embeddings"):
            config.max_position_embeddings = positions
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config)
    if architecture == "marian":  # as those of OPUS-MT
        model.generation_config.update(num_beams=6, renormalize_logits=True, bad_words_ids=[[config.pad_token_id]])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
