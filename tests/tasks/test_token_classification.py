"""Token classification: rows, targets, metric, and the answers of ``transformers.pipeline`` from the same model's logits."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.runtime.tasks.base import Arrays
from serving.runtime.tasks.token_classification import TASK
from serving.runtime.tokenization import TextEncoder

from ..conftest import ARCHITECTURES, TOKENIZERS, _config, _randomize, _tokenizer

WNUT = Path(__file__).parents[3] / "shared" / "data" / "wnut17"
LABELS = ("O", "B-film", "I-film", "B-creative-work", "I-creative-work", "plain", "E-odd")
TOLERANCE = 1e-3
TEXTS = [
    "the film was good, its cast a delight (of course): this story's beautiful.",
    "warm   spaces  and\ttabs\nand lines",
    "",
    " ",
    "a",
    "한국어 문장입니다.",
    "这部电影很好看。",
    "فيلم رائع",
    "🎬👍🏽👩‍👩‍👧 good film",
    "cafe\u0301 ole\u0301 café",
    "a\u200db\u200cc",
    "nul\x00inside",
    "[PAD] [CLS] [SEP] [MASK] [UNK] <unk> <mask> <s> film",
    "the film and this story with every scene " * 40,
]


class Reader:
    """A checkpoint as it is served, without a server: its tokenizer, its logits, the task's answers."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForTokenClassification.from_pretrained(folder).eval()
        self.pipeline = pipeline("token-classification", model=self.model, tokenizer=str(folder), device="cpu")
        self.task = TASK.from_config(json.loads((folder / "config.json").read_text())).with_tokenizer(self.tokenizer)
        self.task = TASK.from_settings(json.loads(json.dumps(self.task.settings())))  # as the server has it
        names, length = self.tokenizer.model_input_names, self.tokenizer.model_max_length
        self._encoder = TextEncoder(str(folder / "tokenizer.json"), max_length=length, names=names, padding={"input_ids": 0})
        self._torch = torch

    def entities(self, texts: list[str], **options: Any) -> Arrays:
        asked = self.task.request_options(self.task.asked(options))
        features = self.task.features([texts], self._encoder, asked)
        feed = {name: self._torch.from_numpy(array) for name, array in self._encoder.arrays(features.encodings).items()}
        with self._torch.inference_mode():
            logits = self.model(**feed).logits.numpy()
        return self.task.answers({"logits": logits}, features.origins, asked)

    def __call__(self, texts: list[str], **options: Any) -> list[Any]:
        return self.task.pipeline_answers(self.entities(texts, **options))


def _level(model: Any, tokenizer: Any) -> None:
    """Let no label win everywhere, as chance would have it."""
    import torch

    with torch.no_grad():
        batch = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt", return_token_type_ids=False)
        logits = model(**batch).logits[batch["attention_mask"] == 1]
        model.classifier.weight /= logits.std(dim=0, keepdim=True).T / 2
        model.classifier.bias -= logits.mean(dim=0)
        logits = model(**batch).logits[batch["attention_mask"] == 1]
        model.classifier.bias -= logits.mean(dim=0)


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reader]:
    """Architecture → a tiny random checkpoint of it; made once a run."""
    made: dict[str, Reader] = {}

    def make(architecture: str) -> Reader:
        if architecture not in made:
            from transformers import AutoModelForTokenClassification

            tokenizer = _tokenizer(TOKENIZERS[architecture])
            tokenizer.model_input_names = ["input_ids", "attention_mask"]  # some architectures take no more
            config = _config(architecture, tokenizer)
            config.id2label, config.label2id = dict(enumerate(LABELS)), {label: index for index, label in enumerate(LABELS)}
            model = AutoModelForTokenClassification.from_config(config)
            _randomize(model)
            _level(model.eval(), tokenizer)
            folder = tmp_path_factory.mktemp("checkpoints") / architecture
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[architecture] = Reader(folder)
        return made[architecture]

    return make


def assert_same(ours: Any, theirs: Any) -> None:
    """The same keys in the same order, the same entities in the same order; scores within the contract's tolerance."""
    assert len(ours) == len(theirs)
    for row, wanted in zip(ours, theirs, strict=True):
        assert [list(one) for one in row] == [list(one) for one in wanted]
        plain, wanted_plain = ([{**one, "score": None} for one in side] for side in (row, wanted))
        assert plain == wanted_plain
        assert [one["score"] for one in row] == pytest.approx([one["score"] for one in wanted], abs=TOLERANCE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_equals_the_pipeline(reader: Callable[[str], Reader], architecture: str, strategy: str) -> None:
    read = reader(architecture)
    asked = {"aggregation_strategy": strategy, "ignore_labels": ["O", "film"]}
    ours = read(TEXTS, **asked)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are no real words
        assert_same(ours, read.pipeline(TEXTS, **asked))
    assert len({one.get("entity", one.get("entity_group")) for row in ours for one in row}) > 3, "a model that tells nothing apart"
