"""Convert the GGUF file of a SmolLM2 to a checkpoint folder. Weights are dequantized; the tokenizer is made from the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.errors import ArtifactError
from serving.writing import writing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = 3
"""Type of a special token in ``tokenizer.ggml.token_type``."""
PRE_TOKENIZER = "smollm"
"""Value of ``tokenizer.ggml.pre``: each digit is a word of its own, the rest is split as GPT-2 does."""


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file as a checkpoint of ``transformers``.

    The weights are float32, which holds the dequantized values exactly. ``transformers`` reads the weights and the config. Its
    tokenizer for this architecture is another one (Llama's: it adds a start token and does not split numbers), so the tokenizer
    is made here.

    Args:
        file: The GGUF file.
        folder: Where the files are written.

    Raises:
        ArtifactError: The file has another architecture or another tokenizer than SmolLM2.
    """
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, GenerationConfig

    fields = {name: field.contents() for name, field in GGUFReader(file).fields.items()}
    _require(file, fields, "general.architecture", "llama")
    _require(file, fields, "tokenizer.ggml.model", "gpt2")
    _require(file, fields, "tokenizer.ggml.pre", PRE_TOKENIZER)
    tokenizer = _tokenizer(fields)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    vars(model.config).pop("_model_name_or_path", None)  # the file has the name of a training run there
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.6g}")  # the file holds it as float32
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    with writing(folder):
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)


def _require(file: Path, fields: Mapping[str, Any], key: str, value: str) -> None:
    if fields.get(key) != value:
        raise ArtifactError(f"{file.name} cannot be converted: {key} is {fields.get(key)!r}, not {value!r}")


def _tokenizer(fields: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Return the tokenizer: byte-level BPE without a start or end token, and the chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokens: Sequence[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == SPECIAL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{role}_token": tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for role, name in roles.items()},
        chat_template=fields["tokenizer.chat_template"],
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=fields["llama.context_length"],
    )
