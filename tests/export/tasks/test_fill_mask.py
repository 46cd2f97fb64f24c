"""Fill-mask without a server: tiny checkpoints of every family held against ``transformers.pipeline``; rows, masks, figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tokenizers import Tokenizer

from benchmarks.benchmark_options import BenchmarkOptions
from benchmarks.preparation import read_rows
from export import graph
from export.checkpoint import load_tokenizer
from export.cli import main
from export.columns import Columns
from export.convert import convert
from export.data import LabelledRows, encode_labels, prepare_rows, read_evaluation
from export.output_head import add_output_head
from export.sources import load_rows
from export.tasks import bundle_task
from export.tasks.base import IGNORED
from export.tasks.fill_mask import FillMaskTask
from serving.artifact import read_manifest
from serving.bundle import load_bundle
from serving.errors import DataError
from serving.manifests import CheckpointManifest
from serving.runtime.tasks import fill_mask
from serving.runtime.tasks._masks import best_tokens, log_sum, top
from serving.runtime.tasks.fill_mask import MOST_MASKS, FillMask
from serving.runtime.tokenization import TextEncoder
from serving.runtime.types import Arrays
from tests.helpers.filling import exported, masked_checkpoint, text_file
from tests.helpers.parity import assert_same
from tests.helpers.reviews import review_rows
from tests.helpers.shared import BERT_TINY, SST2, needs_shared

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
FAMILIES = ("bert", "roberta", "distilbert", "albert", "electra", "xlm-roberta", "camembert", "deberta-v2", "modernbert", "mpnet")


@dataclass(frozen=True, kw_only=True)
class Filler:
    """A graph run as the ensemble runs it, without the server; and the pipeline of the checkpoint it was made of."""

    task: FillMaskTask
    encoder: TextEncoder
    run: Callable[[Arrays], Arrays]
    pipe: Any
    said: str | None
    path: Path

    @property
    def served(self) -> FillMask:
        return self.task.served

    @classmethod
    def of(cls, path: Path, task: FillMaskTask, checkpoint: Path, said: str | None) -> Filler:
        from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        names = graph.input_names(path)
        encoder = TextEncoder(
            Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
            max_length=64,
            names=names,
            padding={"input_ids": tokenizer.pad_token_id},
        )
        tokenizer.model_input_names = names
        pipe = pipeline("fill-mask", model=AutoModelForMaskedLM.from_pretrained(checkpoint).eval(), tokenizer=tokenizer)
        run = graph.runner(graph.session(path, threads=1), task.model_outputs)
        return cls(task=task, encoder=encoder, run=run, pipe=pipe, said=said, path=path)

    def __call__(self, inputs: Any, **given: Any) -> Any:
        options, _ = self.served.sanitize_parameters(given)
        task = self.served.with_options(options)
        features = task.preprocess(list(zip(*task.parse_inputs(inputs), strict=True)), self.encoder)
        outputs = self.run(self.encoder.arrays(features.encodings))
        answers = task.decoded_postprocess(outputs, features.origins, self.encoder.tokenizer)
        return task.format_result(inputs, task.format_answers(answers), given)


@pytest.fixture(scope="session")
def fillers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Filler]:
    """Family → a filler of its raw graph, made once a run."""
    made: dict[str, Filler] = {}

    def make(family: str) -> Filler:
        if family not in made:
            folder = tmp_path_factory.mktemp(f"fill-{family}")
            checkpoint = masked_checkpoint(folder / "checkpoint", family)
            config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
            task = FillMaskTask.from_config(config, pair=False).with_tokenizer(load_tokenizer(checkpoint))
            path = convert(checkpoint, FillMaskTask, folder, opset=18)
            made[family] = Filler.of(path, task, checkpoint, add_output_head(path, task))
        return made[family]

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_gives_what_the_pipeline_gives(fillers: Callable[[str], Filler], family: str) -> None:
    filler = fillers(family)
    mask = filler.served.mask_token
    texts = [
        mask,
        f"the film was {mask} again , is n't it ?",
        f"a {mask} of {mask} story{mask}",
        f"{mask} café cafe\u0301 한국어 这部 فيلم 🎬👩\u200d👩 a\u200db",
        f"good {filler.pipe.tokenizer.pad_token} {mask} and every scene",
    ]
    assert_same(filler(texts), filler.pipe(texts))
    for text in texts:
        assert_same(filler(text, top_k=3), filler.pipe(text, top_k=3))
        assert_same(
            filler(text, targets=["good", "tedious", "dreadfully", "good"]),
            filler.pipe(text, targets=["good", "tedious", "dreadfully", "good"]),
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_only_masked_positions_reach_the_vocabulary(fillers: Callable[[str], Filler], family: str) -> None:
    said = fillers(family).said
    assert said is not None
    assert "before MatMul" in said
    model = graph.load(fillers(family).path)
    (projection,) = [node for node in model.graph.node if "masked/picked" in node.input]
    assert projection.input[1] in {
        tensor.name for tensor in model.graph.initializer
    }  # quantised, it is multiplied as whole numbers


def test_a_list_of_one_text_gives_what_the_text_gives(fillers: Callable[[str], Filler]) -> None:
    filler = fillers("bert")
    for inputs in ("a [MASK]", ["a [MASK]"], ["[MASK] [MASK]"], ["a [MASK]", "b [MASK]"]):
        for options in (
            {},
            {"top_k": 0},
            {"top_k": 1},
            {"top_k": 116},
            {"targets": "good"},
            {"targets": ["good", "bad"], "top_k": 1},
        ):
            assert_same(filler(inputs, **options), filler.pipe(inputs, **options))


def test_targets_as_requests_write_them(fillers: Callable[[str], Filler]) -> None:
    task, encoder = fillers("bert").served, fillers("bert").encoder
    ids = task.with_options({"targets": '["good", "bad"]'})._target_ids(encoder.tokenizer)
    assert sorted(ids) == sorted(map(encoder.tokenizer.token_to_id, ("good", "bad")))
    assert task.with_options({"targets": " good,bad "})._target_ids(encoder.tokenizer) == ids
    given = {"targets": "a, b", "tokenizer_kwargs": {"truncation": False}}
    assert task.sanitize_parameters(given) == ({"targets": '["a, b"]', "truncation": False}, {})


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("no mask", {}, r"row 0: no mask token \(\[MASK\]\) found$"),
        ("", {}, "no mask token"),
        ("good " * 100 + "[MASK]", {}, "no mask token .* within the 64 tokens"),
        ("[MASK]" + "good " * 100, {"truncation": False}, "truncation is off"),
        ("[MASK] " * (MOST_MASKS + 1), {}, "17 mask tokens"),
        ("[MASK]", {"targets": '["a", 1]'}, "JSON list of strings"),
        ("[MASK]", {"targets": "[a"}, "must be a JSON list of strings"),
        ("[MASK]", {"targets": "[" * 30_000}, "must be a JSON list of strings"),
        ("[MASK]", {"targets": "a" * 32_769}, "targets has 32769 characters, at most 32768 are taken"),
        ("[MASK]", {"targets": '[""]'}, "no token of the vocabulary"),
        ("[MASK]", {"targets": "[]"}, "no token of the vocabulary"),
        ("[MASK]", {"top_k": 117}, "top_k must be 116 or less"),
        ("[MASK]", {"top_k": -1}, "top_k must be 0 or more"),
        ("[MASK]", {"top_k": True}, "top_k must be a whole number"),
    ],
)
def test_what_is_refused(fillers: Callable[[str], Filler], text: str, options: dict[str, Any], message: str) -> None:
    filler = fillers("bert")
    with pytest.raises(ValueError, match=message):
        filler.served.with_options(options).preprocess([[text]], filler.encoder)


@pytest.mark.parametrize("options", [{"targets": 1}, {"tokenizer_kwargs": 1}, {"tokenizer_kwargs": {"padded": True}}])
def test_options_that_are_no_pipelines(fillers: Callable[[str], Filler], options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        fillers("bert")("[MASK]", **options)


def test_targets_of_a_setting_reach_the_pipeline_that_export_compares_with(fillers: Callable[[str], Filler]) -> None:
    filler = fillers("bert")
    ask = filler.task.library(filler.pipe.model, filler.pipe.tokenizer, max_length=64, options={"targets": "good, bad", "top_k": 1})
    assert_same(ask(("a [MASK]",)), filler.pipe("a [MASK]", targets=["good", "bad"], top_k=1))


def test_a_long_document(fillers: Callable[[str], Filler]) -> None:
    filler = fillers("bert")
    text = "good [MASK] " + "story " * 10_000
    assert_same(filler(text), filler.pipe(text, tokenizer_kwargs={"truncation": True}))


def test_warm_up_keeps_one_mask_whichever_side_is_cut(fillers: Callable[[str], Filler]) -> None:
    filler = fillers("bert")
    text = filler.served.long_example(64)["TEXT"]
    for direction in ("left", "right"):
        tokenizer = Tokenizer.from_str(filler.encoder.tokenizer.to_str())
        tokenizer.enable_truncation(64, direction=direction)
        encoder = TextEncoder(tokenizer, max_length=64, names=("input_ids",), padding={})
        (encoding,) = filler.served.preprocess([[text]], encoder).encodings
        assert encoding.ids.count(filler.served.mask_token_id) == 1
        assert len(encoding) == 64


def test_the_largest_of_a_vocabulary() -> None:
    generator = np.random.default_rng(0)
    for size, top_k in ((30_522, 5), (30_522, 119), (30_522, 120), (1_000, 3), (63, 5), (5, 5), (250_002, 1), (640, 0)):
        logits = generator.normal(size=(3, size)).astype(np.float32)
        assert np.array_equal(top(logits, top_k), np.argsort(-logits, axis=1)[:, :top_k])
        right = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True)
        scores, tokens = best_tokens(logits, top_k, np.empty(0, dtype=np.int32))
        assert scores == pytest.approx(np.take_along_axis(right, tokens, axis=1), rel=1e-4)
    assert log_sum(np.full((2, 1000), 500, dtype=np.float32)) == pytest.approx(500 + np.log(1000))  # nothing overflows


def _projecting(bias: list[int], op: str = "MatMul") -> onnx.ModelProto:
    """Ids → an embedding → a vocabulary."""
    weights = {"table": (9, 4), "weights": (4, 9), "bias": bias}
    generator = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["hidden"]),
        helper.make_node(op, ["hidden", "weights"], ["product"], name="decoder"),
        helper.make_node("Add", ["bias", "product"], ["logits"]),
    ]
    graph_proto = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["rows", "longest"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", "longest", 9])],
        [onnx.numpy_helper.from_array(generator.normal(size=dims).astype(np.float32), name) for name, dims in weights.items()],
    )
    return helper.make_model(graph_proto, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize(
    ("bias", "said"),
    [([9], "before MatMul decoder"), ([1, 1, 9], "before MatMul"), ([4, 9], "from the logits, because no projection")],
)
def test_the_tail_computes_what_numpy_computes(tmp_path: Path, bias: list[int], said: str) -> None:
    """A bias that differs by position must stay where the positions are."""
    task = FillMaskTask(served=FillMask(mask_token_id=7))
    graph.save(_projecting(bias), tmp_path / "raw.onnx")
    graph.save(_projecting(bias), tmp_path / "model.onnx")
    assert said in str(add_output_head(tmp_path / "model.onnx", task))
    raw, tailed = (graph.runner(graph.session(tmp_path / name), ("logits",)) for name in ("raw.onnx", "model.onnx"))
    for ids in ([[1, 7, 7, 7], [7, 1, 2, 3], [1, 2, 3, 4]], [[0, 1, 2, 3]], [[7, 7, 7, 7]], [[3, 2, 1, 7]]):
        feed = {"input_ids": np.array(ids)}
        wanted = task.apply_output_head(raw(feed), feed)["logits"]
        found = tailed(feed)["logits"]
        assert found.shape == wanted.shape
        assert found == pytest.approx(wanted, abs=1e-6)
        assert found.shape == (len(ids), max(1, *(row.count(7) for row in ids)), 9)


def _rows_of(text: list[str], labels: list[Any]) -> LabelledRows:
    return LabelledRows(texts=(tuple(text),), labels=tuple(labels))


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_rows_to_be_judged_on_lack_one_token(fillers: Callable[[str], Filler], family: str) -> None:
    filler = fillers(family)
    texts = [text for text, _ in review_rows(60, seed=3)]
    made = prepare_rows(_rows_of(texts, [None] * 60), filler.task, filler.encoder, location="rows", training=False)
    again = prepare_rows(_rows_of(texts[::-1], [None] * 60), filler.task, filler.encoder, location="rows", training=False)
    assert len(made) > 50
    assert sorted(zip(made.texts[0], made.labels, strict=True)) == sorted(zip(again.texts[0], again.labels, strict=True))
    whole = {tuple(encoding.ids) for encoding in filler.encoder.encode(texts)}
    for encoding, token in zip(filler.encoder.encode(made.texts[0]), made.labels, strict=True):
        ids = [token if one == filler.served.mask_token_id else one for one in encoding.ids]
        assert tuple(ids) in whole
    kept = prepare_rows(made, filler.task, filler.encoder, location="rows", training=False)
    assert kept == made  # as they are read again from a checkpoint or a bundle


def test_texts_without_a_word_are_of_no_use(fillers: Callable[[str], Filler]) -> None:
    filler = fillers("bert")
    with pytest.raises(DataError, match="no row that fill-mask can use"):
        prepare_rows(_rows_of(["", " ", "[MASK]"], [None] * 3), filler.task, filler.encoder, location="rows", training=False)
    kept = prepare_rows(_rows_of(["", "good"], [None] * 2), filler.task, filler.encoder, location="rows", training=True)
    assert kept.texts == (("good",),)


def test_labels_that_users_give(fillers: Callable[[str], Filler], tmp_path: Path) -> None:
    filler = fillers("bert")
    path = tmp_path / "rows.tsv"
    path.write_text("text\ttoken\na [MASK] film\tgood\n[MASK]\tbad\n", encoding="utf-8")
    rows = encode_labels(load_rows(str(path), Columns(labels=("token",)), FillMaskTask, split="test", cache=tmp_path), filler.task)
    made = prepare_rows(rows, filler.task, filler.encoder, location="rows", training=False)
    assert made.labels == tuple(map(filler.encoder.tokenizer.token_to_id, ("good", "bad")))
    digits = tmp_path / "digits.tsv"
    digits.write_text("text\ttoken\na [MASK] film\t1\n[MASK]\t7\n", encoding="utf-8")
    rows = encode_labels(
        load_rows(str(digits), Columns(labels=("token",)), FillMaskTask, split="test", cache=tmp_path), filler.task
    )
    made = prepare_rows(rows, filler.task, filler.encoder, location="rows", training=False)
    assert made.labels == tuple(map(filler.encoder.tokenizer.token_to_id, "17")), "tokens of digits, not their numbers"
    for text, label, message in (
        ("a b", "good", "needs one"),
        ("[MASK] [MASK]", "good", "this has 2"),
        ("[MASK]", 999, "not a token"),
    ):
        with pytest.raises(DataError, match=message):
            prepare_rows(_rows_of([text], [label]), filler.task, filler.encoder, location="rows", training=False)


def test_masks_are_drawn_as_bert_does(fillers: Callable[[str], Filler]) -> None:
    task = fillers("bert").task
    text = next(token for token in range(task.served.vocabulary) if token not in task.special_ids)
    ids = np.full((400, 100), text)
    ids[:, 0] = task.special_ids[0]
    labels = np.full(ids.shape, IGNORED)
    labels[0, 5] = text  # a row that has its target already
    batch = task.augment_batch({"input_ids": ids, "labels": labels}, np.random.default_rng(0))
    chosen = batch["labels"] != IGNORED
    assert np.array_equal(batch["input_ids"][0], ids[0])
    assert np.array_equal(batch["labels"][0], labels[0])
    assert not chosen[1:, 0].any()
    assert (batch["labels"][chosen] == text).all()
    assert (batch["input_ids"][~chosen] == ids[~chosen]).all()
    assert chosen[1:, 1:].mean() == pytest.approx(0.15, abs=0.01)
    shown = batch["input_ids"][1:][chosen[1:]]
    assert (shown == task.served.mask_token_id).mean() == pytest.approx(0.8, abs=0.02)
    assert (shown == text).mean() == pytest.approx(0.1, abs=0.02)
    assert len(set(shown.tolist())) > 50
    short = task.augment_batch({"input_ids": ids[:50, :2], "labels": np.full((50, 2), IGNORED)}, np.random.default_rng(1))
    assert ((short["labels"] != IGNORED).sum(axis=1) == 1).all()  # a batch without a target has no loss


def test_figures(fillers: Callable[[str], Filler]) -> None:
    task = fillers("bert").task
    logits = np.zeros((2, 1, 100), dtype=np.float32)
    logits[0, 0, 3] = 1e3
    other = np.tile(np.arange(100, dtype=np.float32), (2, 1))[:, None]
    found = task.extra_figures({"logits": logits}, {"logits": other}, None, [3, 99])  # type: ignore[arg-type]
    assert found["perplexity"] == pytest.approx(np.exp((0 + np.log(100)) / 2))
    assert found["accuracy_at_5"] == 0.5
    assert found["agreement_at_5"] == 0.0


def test_a_perplexity_may_overflow(fillers: Callable[[str], Filler]) -> None:
    task = fillers("bert").task
    logits = np.zeros((2, 1, 100), dtype=np.float32)
    logits[:, 0, 3] = 1e4
    found = task.extra_figures({"logits": logits}, {"logits": logits}, None, [4, 4])  # type: ignore[arg-type]
    assert found["perplexity"] == float("inf")


@pytest.mark.slow
@pytest.mark.long
def test_finetune_learns_and_export_keeps_its_rows(tmp_path: Path) -> None:
    """Plain text in; masks drawn anew each step, perplexity well below that of guessing; the bundle judges on the same rows."""
    checkpoint = masked_checkpoint(tmp_path / "checkpoint", "bert", random=False)
    rows = text_file(tmp_path / "rows.csv", 500)
    given = ["--task", "fill-mask", "--name", "fill", "--artifacts", str(tmp_path)]
    training = ["--train", str(rows), "--epochs", "8", "--learning-rate", "5e-3", "--batch-size", "16"]
    assert main(["finetune", *given, "--checkpoint", str(checkpoint), *training]) == 0
    figures = read_manifest(tmp_path / "fill" / "checkpoint", CheckpointManifest).figures.validation
    assert figures["perplexity"] < 50  # 116 at the start
    assert figures["perplexity"] == pytest.approx(np.exp(figures["loss"]), rel=0.1)
    assert main(["export", *given]) == 0
    bundle = load_bundle(tmp_path / "fill" / "bundle")
    original = bundle.manifest.original.metrics
    assert original["perplexity"] == pytest.approx(figures["perplexity"], rel=1e-3)
    assert original["accuracy"] == figures["accuracy"]
    assert {"fp32", "fp16"} <= set(bundle.variants)
    task = bundle_task(bundle)
    assert isinstance(task, FillMaskTask)
    for text, label in zip(*(part for part in _columns(read_evaluation(bundle.folder, task))), strict=True):
        assert text.count(task.served.mask_token) == 1
        assert task.is_reference(label)


def _columns(rows: LabelledRows) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    return rows.texts[0], rows.labels


@needs_shared(BERT_TINY, SST2)
@pytest.mark.slow
@pytest.mark.long
def test_a_real_checkpoint_on_real_rows(tmp_path: Path) -> None:
    lines = SST2.read_text(encoding="utf-8").splitlines()[:101]
    (tmp_path / "rows.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    folder = exported(tmp_path, BERT_TINY, tmp_path / "rows.tsv", "--text-column", "sentence", "--precision", "fp32")
    bundle = load_bundle(folder)
    task = bundle_task(bundle)
    assert isinstance(task, FillMaskTask)
    filler = Filler.of(bundle.variant("fp32").path, task, BERT_TINY, bundle.manifest.output_head)
    texts = list(read_evaluation(folder, task).texts[0])[:40]
    assert_same(filler(texts), [filler.pipe(text) for text in texts])


def test_a_benchmark_masks_plain_texts_as_export_does(tmp_path: Path) -> None:
    rows = text_file(tmp_path / "rows.tsv", 60)
    folder = exported(tmp_path, masked_checkpoint(tmp_path / "checkpoint", "bert"), rows, "--precision", "fp32")
    bundle = load_bundle(folder)
    verified = read_evaluation(folder, bundle_task(bundle))
    read = read_rows(BenchmarkOptions(name="fill", test=str(rows), rows=10, lengths=()), bundle)
    assert [row[0] for row in read.labelled] == list(verified.texts[0])
    assert read.references == list(verified.labels)


def test_answers_without_number_are_refused(fillers: Callable[[str], Filler], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill_mask, "MOST_ANSWERS", 20)
    filler = fillers("bert")
    assert len(filler("[MASK] [MASK]", top_k=10)) == 2
    with pytest.raises(ValueError, match="row 0: top_k 11 for 2 masks; 20 answers are given at most"):
        filler("[MASK] [MASK]", top_k=11)
    assert len(filler("[MASK] [MASK]", top_k=116, targets=["good", "bad"])[0]) == 2
