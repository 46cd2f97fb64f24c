"""Tiny tokenizers, configurations and random weights of each architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.reviews import BAD, FILLING, GOOD, LABELS

TOKENIZERS = {
    "bert": "wordpiece",
    "distilbert": "wordpiece",
    "electra": "wordpiece",
    "roberta": "bpe",
    "mpnet": "bpe",
    "modernbert": "bpe",
    "albert": "unigram",
    "deberta-v2": "unigram",
    "xlm-roberta": "unigram",
    "camembert": "unigram",
}
ARCHITECTURES = tuple(TOKENIZERS)


def vocabulary_model(kind: str, specials: list[str]) -> tuple[Any, Any]:
    """Model and pre-tokenizer of a tokenizer that knows the reviews' words; spelled out, as training one is not repeatable."""
    from tokenizers import models, pre_tokenizers

    words = sorted({word for phrase in (*GOOD, *BAD, *FILLING) for word in phrase.split()})
    letters = sorted(set("".join(words)) | set(",.abcdefghijklmnopqrstuvwxyz0123456789"))
    if kind == "wordpiece":
        known = [*specials, *letters, *(f"##{letter}" for letter in letters), *(word for word in words if len(word) > 1)]
        pieces = {piece: index for index, piece in enumerate(known)}
        return models.WordPiece(pieces, unk_token=specials[1]), pre_tokenizers.BertPreTokenizer()
    if kind == "unigram":
        scores = [(piece, 0.0) for piece in specials] + [(letter, -9.0) for letter in ("▁", *letters)]
        return models.Unigram([*scores, *((f"▁{word}", -3.0) for word in words)], unk_id=1), pre_tokenizers.Metaspace()
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelled = [split.pre_tokenize_str(f" {word}")[0][0] for word in words]  # as bytes are written in such a vocabulary
    merges = list(dict.fromkeys((word[:end], word[end]) for word in spelled for end in range(1, len(word))))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = list(dict.fromkeys([*specials, *alphabet, *(head + tail for head, tail in merges)]))
    return models.BPE({piece: index for index, piece in enumerate(known)}, merges), split


def make_tokenizer(kind: str, **options: Any) -> Any:
    """A tokenizer of the given family (wordpiece, bpe, unigram) that takes 64 tokens."""
    from tokenizers import Tokenizer, decoders, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    bert = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    roberta = {"cls": "<s>", "unk": "<unk>", "pad": "<pad>", "sep": "</s>", "mask": "<mask>"}  # padding is not always 0
    special = bert if kind == "wordpiece" else roberta
    model, split = vocabulary_model(kind, list(special.values()))
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split
    if kind == "wordpiece":
        tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.decoder = {"wordpiece": decoders.WordPiece, "bpe": decoders.ByteLevel, "unigram": decoders.Metaspace}[kind]()
    cls, sep = special["cls"], special["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, tokenizer.token_to_id(cls)), (sep, tokenizer.token_to_id(sep))],
    )
    names = {f"{role}_token": token for role, token in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names, **options)


def make_config(architecture: str, tokenizer: Any) -> Any:
    from transformers import AutoConfig

    common = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "num_labels": 2,
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: index for index, label in enumerate(LABELS)},
    }
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 80,
    }
    own: dict[str, Any] = {
        "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 80},
        "albert": sizes | {"embedding_size": 16},
        "electra": sizes | {"embedding_size": 16},
        "deberta-v2": sizes
        | {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 16,
            "type_vocab_size": 0,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
        },
        "modernbert": sizes
        | {
            "global_attn_every_n_layers": 2,
            "local_attention": 8,
            "reference_compile": False,
            "cls_token_id": tokenizer.cls_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "bos_token_id": tokenizer.cls_token_id,
            "eos_token_id": tokenizer.sep_token_id,
        },
    }.get(architecture, sizes)
    return AutoConfig.for_model(architecture, **common, **own)


def randomize(model: Any) -> None:
    """Weights that make every part of the network matter: a fresh model's biases are 0, its normalisations do nothing."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.6 if "embed" in name else 1.2 / parameter.shape[-1] ** 0.5)
            else:
                parameter.normal_(float("norm" in name.lower() and name.endswith("weight")), 0.2)


def train_bert(folder: Path, rows: list[dict[str, str]]) -> Path:
    """Train a small BERT on the rows until it knows them by heart, and save it in ``folder``."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from tokenizers.processors import BertProcessing
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator([row["text"] for row in rows], vocab_size=600, show_progress=False)
    tokenizer.post_processor = BertProcessing(*((token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]")))
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=96,
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
    )
    model = BertForSequenceClassification(config)
    fast = BertTokenizerFast(tokenizer_object=tokenizer._tokenizer, model_max_length=96)
    encoded = fast([row["text"] for row in rows], padding=True, truncation=True, return_tensors="pt")
    labels = torch.tensor([config.label2id[row["label"]] for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(40):  # learnt by heart: its answers differ from text to text
        optimizer.zero_grad()
        model(**encoded, labels=labels).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
