"""A checkpoint folder of each family that generates: a tiny model, and a tokenizer each of whose texts is another row of tokens."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.helpers import decoders, encoder_decoders

POSITIONS = 256
"""Tokens that each model takes, of a prompt and its answer, or of a source."""
WORDS = ("the", "sea", " and", "ing", " was", " story", "n't", "好", "这部", "🎉", "é", " of", "tion", ". ", ", ")
LIKE_LLAMA = ("llama", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3")
"""Decoders whose tokenizer falls back to bytes and begins each text with a token; the others have that of GPT-2."""
POSITION_OPTIONS = {"gpt2": "n_positions", "gpt_bigcode": "n_positions"}
SEEDS = {"bart": 2, "marian": 4, "blenderbot-small": 4}
"""Seeds of the weights that give answers of many tokens, where 0 does not."""
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
"""The first tokens of decoders."""
STOP_PREFIX = "abcdef"
"""Text that a tokenizer must know, because transformers decodes it in front of each token to find stop strings."""
ARCHITECTURES = (*decoders.DECODERS, *encoder_decoders.CONFIGURATIONS)


def write_family(architecture: str, folder: Path) -> Path:
    """Write the checkpoint of a family into an empty folder."""
    if architecture in decoders.DECODERS:
        positions = {POSITION_OPTIONS.get(architecture, "max_position_embeddings"): POSITIONS}
        model = decoders.make_decoder(architecture, **positions)
        tokenizer = _decoder_tokenizer(architecture, model.config.pad_token_id)
    else:
        own = encoder_decoders.CONFIGURATIONS[architecture]
        longer = {"max_position_embeddings": POSITIONS} if "max_position_embeddings" in own else {}
        model = encoder_decoders.tiny_encoder_decoder(architecture, SEEDS.get(architecture, 0), **longer)
        tokenizer = _word_tokenizer(model.config)
    assert len(tokenizer) == model.config.vocab_size
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Moving the following attributes")  # of the config, to the generation config
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _decoder_tokenizer(architecture: str, padding: int | None) -> Any:
    """One that knows all bytes, and some parts of words. It has a padding token only if the model's config names one."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
    from tokenizers.decoders import ByteFallback, ByteLevel, Fuse, Replace
    from tokenizers.decoders import Sequence as Decoders
    from transformers import PreTrainedTokenizerFast

    size, split = decoders.VOCABULARY, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    like_llama = architecture in LIKE_LLAMA
    if like_llama:
        spelled = [word.replace(" ", "▁") for word in WORDS]
        alphabet = [f"<0x{byte:02X}>" for byte in range(256)] + sorted(set("".join(spelled)) | set("▁abcdefx"))
    else:
        spelled = [split.pre_tokenize_str(word)[0][0] for word in WORDS]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(dict.fromkeys((word[:end], word[end]) for word in spelled for end in range(1, len(word))))
    pieces = [*SPECIAL, *alphabet, *dict.fromkeys(head + tail for head, tail in merges)][:size]
    known = set(pieces)
    merges = [pair for pair in merges if "".join(pair) in known]
    pieces += [f"<unused{number}>" for number in range(size - len(pieces))]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>" if like_llama else None, byte_fallback=like_llama))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    if like_llama:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        tokenizer.decoder = Decoders([Replace("▁", " "), ByteFallback(), Fuse()])
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    else:
        tokenizer.pre_tokenizer, tokenizer.decoder = split, ByteLevel()
    named = {"bos_token": "<s>", "eos_token": "</s>"} | ({} if padding is None else {"pad_token": pieces[padding]})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **named)


def _word_tokenizer(config: Any) -> Any:
    """One with a word for each token, ``w9`` for token 9, so that an answer's text tells its tokens."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {config.pad_token_id: "<pad>", config.eos_token_id: "</s>"}
    if config.bos_token_id is not None:
        special.setdefault(config.bos_token_id, "<s>")
    special.setdefault(config.decoder_start_token_id, "<start>")
    pieces = [special.get(token, f"w{token}") for token in range(config.vocab_size)]
    unknown = next(token for token in range(config.vocab_size) if token not in special)
    pieces[unknown], pieces[-1] = "<unk>", STOP_PREFIX
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=pieces[unknown]))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (*special.values(), "<unk>")])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "<s> $A </s>" if "<s>" in vocabulary else "$A </s>"
    used = [(token, vocabulary[token]) for token in ("<s>", "</s>") if token in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    named |= {"bos_token": "<s>"} if "<s>" in vocabulary else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **named)


def word_parts(architecture: str) -> tuple[str, ...]:
    """What texts for a family are made of."""
    if architecture in decoders.DECODERS:
        return (*WORDS, " a", "x", "T", "o", "\n", "«", "👍🏽", "한국")
    return tuple(f"w{token} " for token in range(10, encoder_decoders.VOCABULARY, 3))


def character_bytes(tokenizer: Any) -> list[int]:
    """Return the tokens of single bytes that are a character, of a tokenizer that falls back to bytes."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[name] for byte in range(128) if (name := f"<0x{byte:02X}>") in vocabulary]


def text_maker(tokenizer: Any, parts: Sequence[str], seed: int) -> Callable[[int], str]:
    """Return what makes texts of a number of tokens, but not less than the shortest part; special tokens do not count.

    They have some tokens fewer where parts have several.
    """
    choose = random.Random(seed)

    def length(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    shortest = min(parts, key=length)

    def make(count: int) -> str:
        text, failed = shortest if length(shortest) >= count else "", 0
        while failed < 5:
            longer = text + choose.choice(parts)
            if length(longer) <= count:
                text = longer
            elif text:
                failed += 1
        return text

    return make
