"""A small random BERT, exported, packaged in several ways, and one real server that serves them all for the whole run."""

from __future__ import annotations

import csv
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serving.repository import PackageOptions, package
from serving.server import ServeOptions
from serving.supervisor import start_detached, stop

DATA = Path(__file__).parents[1] / "data"
SHARED_SST2 = Path(__file__).parents[3] / "shared" / "data" / "sst2" / "dev.tsv"
STRANGE_TEXTS = [
    "",
    " ",
    "a",
    "한국어 문장입니다.",
    "这部电影很好看。",
    "فيلم رائع",
    "🎬👍🏽👩‍👩‍👧",
    "cafe\u0301 ole\u0301",
    "a\u200db\u200cc",
    "nul\x00inside",
    "[PAD] [CLS] [SEP] [MASK]",
    "word " * 10_000,
]


@dataclass(frozen=True, kw_only=True)
class Server:
    """The running server, and what the tests compare it with."""

    options: ServeOptions
    bundles: dict[str, Path]
    checkpoints: dict[str, Path]

    def url(self, protocol: str) -> str:
        return self.options.grpc_url if protocol == "grpc" else self.options.base_url.removeprefix("http://")

    def benchmark(self, name: str, **more: object) -> list[str]:
        """The command that benchmarks one of its models, ``length=8`` as ``--length 8``."""
        given = {
            "bundle": self.bundles[name],
            "checkpoint": self.checkpoints[name],
            "repository": self.options.repository,
            "http_port": self.options.http_port,
            "grpc_port": self.options.grpc_port,
            "metrics_port": self.options.metrics_port,
            **more,
        }
        flags = [text for key, value in given.items() for text in (f"--{key.replace('_', '-')}", str(value))]
        return [sys.executable, "-m", "export.cli", "benchmark", name, *flags]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_options(repository: Path) -> ServeOptions:
    return ServeOptions(repository=repository, http_port=free_port(), grpc_port=free_port(), metrics_port=free_port())


@pytest.fixture(scope="session")
def review_rows() -> list[dict[str, str]]:
    with (DATA / "reviews.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture(scope="session")
def texts(review_rows: list[dict[str, str]]) -> list[str]:
    """All 872 SST-2 dev sentences where they are at hand, else the sample that comes with the tests."""
    if SHARED_SST2.is_file():
        return [line.split("\t")[0] for line in SHARED_SST2.read_text(encoding="utf-8").splitlines()[1:]]
    return [row["text"] for row in review_rows]


def _tiny_bert(folder: Path, rows: list[dict[str, str]]) -> Path:
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


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, review_rows: list[dict[str, str]]) -> Path:
    return _tiny_bert(tmp_path_factory.mktemp("tiny"), review_rows)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """fp32 and int8 of the tiny checkpoint, verified on the sample rows."""
    return _export(tmp_path_factory.mktemp("artifacts"), tiny_checkpoint, DATA / "reviews.tsv")


@pytest.fixture(scope="session")
def pair_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, review_rows: list[dict[str, str]]) -> Path:
    """The same checkpoint taken for one of pairs."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = folder / "pairs.tsv"
    lines = [
        f"{one['text']}\t{other['text']}\t{one['label']}" for one, other in zip(review_rows, reversed(review_rows), strict=True)
    ]
    rows.write_text("\n".join(["text\tsecond\tlabel", *lines]) + "\n", encoding="utf-8")
    return _export(folder, tiny_checkpoint, rows, "--text-pair-column", "second")


def _export(artifacts: Path, checkpoint: Path, rows: Path, *arguments: str) -> Path:
    from export.cli import main

    code = main(
        [
            "export",
            "--name",
            "tiny",
            "--artifacts",
            str(artifacts),
            "--checkpoint",
            str(checkpoint),
            "--test",
            str(rows),
            "--max-length",
            "96",
            "--max-metric-drop",
            "100",
            "--min-agreement",
            "0",
            *arguments,
        ]
    )
    assert code == 0
    return artifacts / "tiny" / "bundle"


@pytest.fixture(scope="session")
def packaged(tmp_path_factory: pytest.TempPathFactory, bundle: Path, pair_bundle: Path) -> Path:
    """One repository with every way of packaging that the tests ask."""
    repository = tmp_path_factory.mktemp("models") / "model_repository"
    ways: dict[str, dict[str, Any]] = {
        "ragged": {"bundle": bundle, "precision": "fp32", "batching": "ragged"},
        "alone": {"bundle": bundle, "precision": "fp32", "batching": "off"},
        "int8": {"bundle": bundle, "precision": "int8"},
        "pairs": {"bundle": pair_bundle, "precision": "fp32", "batching": "ragged", "max_batch_size": 8},
    }
    for name, way in ways.items():
        package(PackageOptions(name=name, repository=repository, device="cpu", **way))
    return repository


@pytest.fixture(scope="session")
def server(packaged: Path, bundle: Path, pair_bundle: Path, tiny_checkpoint: Path) -> Iterator[Server]:
    options = serve_options(packaged)
    start_detached(options)
    names = {"ragged": bundle, "alone": bundle, "int8": bundle, "pairs": pair_bundle}
    yield Server(options=options, bundles=names, checkpoints=dict.fromkeys(names, tiny_checkpoint))
    stop(options.http_port)


@pytest.fixture(scope="session")
def pipeline(tiny_checkpoint: Path) -> Callable[..., Any]:
    """``transformers.pipeline`` on the original checkpoint: what every answer is held against."""
    import torch
    import transformers

    torch.set_num_threads(1)  # the server wants the other core
    return transformers.pipeline(
        "text-classification", model=str(tiny_checkpoint), tokenizer=str(tiny_checkpoint), truncation=True, max_length=96
    )


@pytest.fixture(scope="session")
def expected(pipeline: Callable[..., Any], texts: list[str]) -> list[dict[str, Any]]:
    """The pipeline's answer to each of ``texts``."""
    answers: list[dict[str, Any]] = pipeline(texts)
    return answers
