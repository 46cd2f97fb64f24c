"""Tiny random checkpoints, made offline, and rows to go with them."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# a run in the background of a shell script inherits that Ctrl-C is ignored; the tests press it
signal.signal(signal.SIGINT, signal.default_int_handler)

# before any library reads them: nothing is downloaded, and nobody's own cache is written
_HOME = tempfile.TemporaryDirectory(prefix="tritonize-tests-")
os.environ |= {"ORT_DISABLE_TELEMETRY": "1", "HF_HOME": _HOME.name, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

GOOD = ("good", "warm", "funny", "engaging", "a delight", "moving", "beautiful", "superb")
BAD = ("bad", "dull", "tedious", "a mess", "cold", "lifeless", "ugly", "dreadful")
FILLING = ("the film", "this story", "its cast", "and", "but", "of course", "with", "every scene", "is", "was", "again", "café")

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
LABELS = ("negative", "positive")


def pytest_unconfigure() -> None:
    """Remove the libraries' cache."""
    _HOME.cleanup()


def review_rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Made-up reviews of 1 to 40 words and their labels, told apart by their words."""
    choose = random.Random(seed)
    rows = []
    for _ in range(count):
        label = choose.choice(LABELS)
        words = [choose.choice(FILLING) for _ in range(choose.choice((0, 1, 3, 6, 12, 20)))]
        words.insert(choose.randint(0, len(words)), choose.choice(GOOD if label == "positive" else BAD))
        rows.append((" ".join(words), label))
    return rows


def write_tsv(path: Path, rows: list[tuple[str, str]], header: str = "text\tlabel") -> Path:
    """Write rows as a tsv file."""
    path.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


def _vocabulary(kind: str, specials: list[str]) -> tuple[Any, Any]:
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


def _tokenizer(kind: str) -> Any:
    """A tokenizer of the given family (wordpiece, bpe, unigram) that takes 64 tokens."""
    from tokenizers import Tokenizer, decoders, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    bert = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    roberta = {"cls": "<s>", "unk": "<unk>", "pad": "<pad>", "sep": "</s>", "mask": "<mask>"}  # padding is not always 0
    special = bert if kind == "wordpiece" else roberta
    model, split = _vocabulary(kind, list(special.values()))
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
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


def _config(architecture: str, tokenizer: Any) -> Any:
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


def _randomize(model: Any) -> None:
    """Weights that make every part of the network matter: a fresh model's biases are 0, its normalisations do nothing."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.6 if "embed" in name else 1.2 / parameter.shape[-1] ** 0.5)
            else:
                parameter.normal_(float("norm" in name.lower() and name.endswith("weight")), 0.2)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Architecture → folder of a tiny random sentiment checkpoint of it, made once a run."""
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            from transformers import AutoModelForSequenceClassification

            tokenizer = _tokenizer(TOKENIZERS[architecture])
            model = AutoModelForSequenceClassification.from_config(_config(architecture, tokenizer))
            _randomize(model)
            made[architecture] = tmp_path_factory.mktemp("checkpoints") / architecture
            model.save_pretrained(made[architecture])
            tokenizer.save_pretrained(made[architecture])
        return made[architecture]

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(make_checkpoint: Callable[[str], Path]) -> Path:
    """Folder of a tiny random BERT with a two-label head; takes 64 tokens."""
    return make_checkpoint("bert")


@pytest.fixture(scope="session")
def base_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny BERT without a head, fresh, so that it learns quickly; takes 64 tokens."""
    import torch
    from transformers import AutoModel

    torch.manual_seed(0)
    tokenizer = _tokenizer("wordpiece")
    folder = tmp_path_factory.mktemp("checkpoints") / "base"
    AutoModel.from_config(_config("bert", tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def review_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 labelled reviews, one of them empty, as tsv: columns text, label (negative, positive)."""
    rows = review_rows(299, seed=2)
    return write_tsv(tmp_path_factory.mktemp("rows") / "reviews.tsv", [("", "negative"), *rows])


@contextlib.contextmanager
def full_disk(size: int = 20_000) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes, which is what a library sees of a disk that is full: a failing write.

    Not a fixture: pytest's own output, which may go to a file that is longer by now, comes before fixtures end.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def in_folder(tmp_path: Path) -> Iterator[Path]:
    """Run the test in an empty folder of its own, so that artifacts/ lands there."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)
