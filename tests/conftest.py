"""Tiny random checkpoints, made offline, and rows to go with them."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# before any library reads them: nothing is downloaded, and nobody's own cache is written
_HOME = tempfile.TemporaryDirectory(prefix="tritonize-tests-")
os.environ |= {"HF_HOME": _HOME.name, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

GOOD = ("good", "warm", "funny", "engaging", "a delight", "moving", "beautiful", "superb")
BAD = ("bad", "dull", "tedious", "a mess", "cold", "lifeless", "ugly", "dreadful")
FILLING = ("the film", "this story", "its cast", "and", "but", "of course", "with", "every scene", "is", "was", "again", "café")

TOKENIZERS = {"bert": "wordpiece", "distilbert": "wordpiece", "electra": "wordpiece", "roberta": "bpe", "mpnet": "bpe",
              "modernbert": "bpe", "albert": "unigram", "deberta-v2": "unigram", "xlm-roberta": "unigram"}
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


def _tokenizer(kind: str) -> Any:
    """A tokenizer of the given family, trained on the made-up reviews."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [text for text, _ in review_rows(400, seed=1)]
    if kind == "wordpiece":
        special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
        tokenizer = Tokenizer(models.WordPiece(unk_token=special["unk"]))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=200, special_tokens=list(special.values()))
    else:
        special = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
        if kind == "bpe":
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(special.values()),
                                          initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
        else:
            tokenizer = Tokenizer(models.Unigram())
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
            tokenizer.decoder = decoders.Metaspace()
            trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=list(special.values()), unk_token=special["unk"],
                                              show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    cls, sep = special["cls"], special["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, tokenizer.token_to_id(cls)), (sep, tokenizer.token_to_id(sep))],
    )
    names = {f"{role}_token": token for role, token in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


def _config(architecture: str, tokenizer: Any) -> Any:
    from transformers import AutoConfig

    common = {
        "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "num_labels": 2,
        "id2label": dict(enumerate(LABELS)), "label2id": {label: index for index, label in enumerate(LABELS)},
    }
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
             "max_position_embeddings": 80}
    own: dict[str, Any] = {
        "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 80},
        "albert": sizes | {"embedding_size": 16},
        "electra": sizes | {"embedding_size": 16},
        "deberta-v2": sizes | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16,
                               "type_vocab_size": 0, "norm_rel_ebd": "layer_norm", "share_att_key": True,
                               "position_biased_input": False},
        "modernbert": sizes | {"global_attn_every_n_layers": 2, "local_attention": 8, "reference_compile": False,
                               "cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id,
                               "bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id},
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


@pytest.fixture
def in_folder(tmp_path: Path) -> Iterator[Path]:
    """Run the test in an empty folder of its own, so that artifacts/ lands there."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)
