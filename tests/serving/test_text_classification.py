"""Other kinds of text classification through a real server: any number of labels a row, a number of pairs, a decoder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.pipelines.text_classification import ClassificationFunction

from serving.client import TritonPipeline
from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from tests.helpers.checkpoints import make_tokenizer, randomize
from tests.helpers.exporting import export_bundle
from tests.helpers.parity import assert_same
from tests.helpers.reviews import LABELS
from tests.helpers.servers import STRANGE_TEXTS, running, serve_options

pytestmark = pytest.mark.server
TOLERANCE = 1e-3


def many_labels(source: Path, folder: Path) -> Path:
    """The tiny checkpoint, its labels taken for ones of which a row may have any number, and less sure of them.

    Special tokens in its texts are words, which stands in no tokenizer.json.
    """
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(source)
    model.classifier.weight.data *= 0.1
    model.classifier.bias.data[0] += 1
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source, split_special_tokens=True).save_pretrained(folder)
    return folder


def one_number(source: Path, folder: Path) -> Path:
    """Untrained, as what the tiny checkpoint has learnt by heart gives few numbers, and far apart."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(source, num_labels=1, id2label={0: "score"}, problem_type="regression")
    torch.manual_seed(3)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.classifier.weight.data *= 100
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def decoder(folder: Path) -> Path:
    """A random Llama, which takes the logits of the last token that is not token 7; its tokenizer pads with another one."""
    import transformers

    tokenizer = make_tokenizer("bpe", model_input_names=["input_ids", "attention_mask"])
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=7,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    model = transformers.LlamaForSequenceClassification(config)
    randomize(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(trained_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {
        "many": many_labels(trained_checkpoint, folder / "many"),
        "number": one_number(trained_checkpoint, folder / "number"),
        "decoder": decoder(folder / "decoder"),
    }


@pytest.fixture(scope="module")
def kinds(
    checkpoints: dict[str, Path], sample_rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServeOptions]:
    """A server with all, exported on the command line on rows with lists of labels, with numbers, and with one label."""
    folder = tmp_path_factory.mktemp("kinds")
    rows = {
        "many": [{"text": row["text"], "label": [row["label"]][: index % 5]} for index, row in enumerate(sample_rows)],
        "number": [
            {"text": row["text"], "other": "again", "label": 4.5 if row["label"] == "positive" else 0.5} for row in sample_rows
        ],
        "decoder": sample_rows,
    }
    more: dict[str, list[str]] = {"many": [], "number": ["--text-pair-column", "other"], "decoder": []}
    repository = folder / "model_repository"
    for name, checkpoint in checkpoints.items():
        file = folder / f"{name}.jsonl"
        file.write_text("\n".join(map(json.dumps, rows[name])), encoding="utf-8")
        bundle = export_bundle(folder / name, checkpoint, file, "--precision", "fp32", *more[name])
        batching = "off" if name == "number" else "ragged"
        package(PackageOptions(name=name, repository=repository, bundle=bundle, precision="fp32", device="cpu", batching=batching))
    with running(serve_options(repository)) as options:
        yield options


@pytest.fixture(scope="module")
def pipelines(checkpoints: dict[str, Path]) -> dict[str, Callable[..., Any]]:
    import transformers

    return {
        name: transformers.pipeline("text-classification", model=str(folder), device="cpu", truncation=True, max_length=96)
        for name, folder in checkpoints.items()
    }


def client(options: ServeOptions, name: str, protocol: str) -> TritonPipeline:
    url = options.grpc_url if protocol == "grpc" else options.base_url.removeprefix("http://")
    return TritonPipeline(name, url=url, protocol=protocol)  # type: ignore[arg-type]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_any_number_of_labels(kinds: ServeOptions, pipelines: Any, texts: list[str], protocol: str) -> None:
    rows = [*texts[:60], *STRANGE_TEXTS]
    with client(kinds, "many", protocol) as pipe:
        found = pipe(rows, top_k=None)
        assert_same(found, pipelines["many"](rows, top_k=None))
        assert_same(pipe(rows), pipelines["many"](rows))
        softmax = {"top_k": None, "function_to_apply": "SOFTMAX" if protocol == "grpc" else ClassificationFunction.SOFTMAX}
        assert_same(pipe(rows[:9], **softmax), pipelines["many"](rows[:9], **softmax))
    sums = np.array([sum(item["score"] for item in row) for row in found])
    assert np.abs(sums - 1).max() > 0.01, "each label has a score of its own"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_number_of_pairs(kinds: ServeOptions, pipelines: Any, texts: list[str], protocol: str) -> None:
    pairs = [{"text": one, "text_pair": other} for one, other in zip(texts[:40], reversed(texts[:40]), strict=True)]
    pairs += [{"text": texts[0], "text_pair": ""}, {"text": "", "text_pair": texts[0]}, {"text": "", "text_pair": ""}]
    with client(kinds, "number", protocol) as pipe:
        found = pipe(pairs)
        assert_same(found, pipelines["number"](pairs))
        assert_same(pipe(pairs[:5], function_to_apply="sigmoid"), pipelines["number"](pairs[:5], function_to_apply="sigmoid"))
        assert_same(pipe(pairs[0]), pipelines["number"](pairs[0]))
        assert_same(pipe(pairs[:2], top_k=None), pipelines["number"](pairs[:2], top_k=None))
    numbers = [item["score"] for item in found]
    assert min(numbers) < 0 or max(numbers) > 1, "nothing is applied to it"
    assert len({round(number, 3) for number in numbers}) > 10


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_decoder_finds_the_last_token_of_each_row(kinds: ServeOptions, pipelines: Any, texts: list[str], batch_size: int) -> None:
    """Rows of all lengths share its batches: in one request, or of many requests at once."""
    with TritonPipeline("decoder", url=kinds.grpc_url, batch_size=batch_size) as pipe:
        found = pipe(texts[:60])
    assert_same(found, [pipelines["decoder"](text)[0] for text in texts[:60]])
    assert len({round(item["score"], 3) for item in found}) > 10
