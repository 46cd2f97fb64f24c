"""Sentence embeddings: pooling in every form it has, what a checkpoint's files say, options, loss, training, parity."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoTokenizer

from export import cli, convert, graph
from export.checkpoint import read_files, read_settings, write_files
from export.finetune_options import FinetuneOptions
from export.finetuning import finetune
from export.original import original_run
from export.output_head import add_output_head
from export.tasks._pooling import POOLINGS
from export.tasks.feature_extraction import FeatureExtractionTask
from export.training.batches import Collator, training_columns
from export.training.hyperparameters import Hyperparameters
from serving.errors import ArtifactError
from serving.runtime.tokenization import TextEncoder
from serving.runtime.types import Features, Origins
from tests.helpers.reviews import BAD, FILLING, GOOD

TEXTS = [
    "",
    "a",
    "a warm film",
    "한국어 문장입니다.",
    "这部电影很好看。",
    "فيلم رائع",
    "👩‍👩‍👧 🎬",
    "cafe\u0301 a\u200db",
    "the film is dull " * 2500,
]
PAIRS_HEADER = "sentence1\tsentence2\tscore"


def task(**settings: Any) -> FeatureExtractionTask:
    return FeatureExtractionTask.from_settings({"hidden": 8, "dims": 8} | settings)


def answers(bound: FeatureExtractionTask, embeddings: Any, **options: Any) -> Any:
    origins = Origins(np.arange(len(embeddings)))
    return bound.served.with_options(options).postprocess({"sentence_embedding": embeddings}, origins)["EMBEDDING"]


def bound_to(found: dict[str, Any]) -> FeatureExtractionTask:
    return FeatureExtractionTask.from_config({"hidden_size": found["hidden"]}).with_settings(found)


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture
def embeddings() -> Any:
    return np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)


# -- pooling ---------------------------------------------------------------------------------------------------------------------


def by_hand(hidden: Any, lengths: list[int], pooling: str) -> Any:
    pool: dict[str, Callable[[Any], Any]] = {
        "mean": lambda tokens: tokens.mean(axis=0),
        "cls": lambda tokens: tokens[0],
        "max": lambda tokens: tokens.max(axis=0),
        "last": lambda tokens: tokens[-1],
    }
    return np.stack([pool[pooling](row[:length]) for row, length in zip(hidden, lengths, strict=True)])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_reads_no_padding_in_numpy_torch_and_the_graph(pooling: str, tmp_path: Path) -> None:
    lengths = [5, 1, 3]
    hidden = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)
    mask = (np.arange(5) < np.array(lengths)[:, None]).astype(np.int64)
    hidden[mask == 0] = 99.0
    wanted = by_hand(hidden, lengths, pooling)[:, :6]
    bound = task(pooling=pooling, dims=6)
    ours = bound.apply_output_head({"last_hidden_state": hidden}, {"attention_mask": mask})["sentence_embedding"]
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, wanted, atol=1e-6)
    tensors: Any = {"last_hidden_state": torch.from_numpy(hidden)}, {"attention_mask": torch.from_numpy(mask)}
    np.testing.assert_allclose(bound.head_outputs(*tensors)["sentence_embedding"].numpy(), wanted, atol=1e-6)
    for opset in (17, 18):
        path = _identity_graph(tmp_path / f"{opset}.onnx", opset)
        add_output_head(path, bound)
        run = graph.runner(graph.session(path), bound.model_outputs)
        found = run({"hidden_in": hidden, "attention_mask": mask})["sentence_embedding"]
        np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=f"opset {opset}")


def _identity_graph(path: Path, opset: int) -> Path:
    """A model whose hidden states are its input."""
    from onnx import TensorProto, helper

    inputs = [
        helper.make_tensor_value_info("hidden_in", TensorProto.FLOAT, ["rows", "longest", 8]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["rows", "longest"]),
    ]
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["rows", "longest", 8])
    nodes = [helper.make_node("Identity", ["hidden_in"], ["last_hidden_state"])]
    model = helper.make_model(
        helper.make_graph(nodes, "identity", inputs, [output]), opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    )
    onnx.save(model, str(path))
    return path


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # ModernBERT makes torch import it
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "modernbert"])
def test_a_graph_gives_what_pooling_the_pipeline_gives(
    architecture: str, make_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """One text at a time in the pipeline, all of them padded together in the graph: 10,000 words, emoji, an empty one."""
    import transformers

    folder = make_checkpoint(architecture)
    bound = bound_to(read_settings(folder, FeatureExtractionTask, {}))
    pipe = transformers.pipeline("feature-extraction", model=str(folder), device="cpu")
    if architecture not in ("bert", "roberta"):
        pipe.tokenizer.model_input_names = [
            "input_ids",
            "attention_mask",
        ]  # the tiny ones' tokenizer does not know for whom it works
    wanted = np.stack([np.array(pipe(text, truncation=True, max_length=64)[0]).mean(axis=0) for text in TEXTS])
    path = convert.convert(folder, FeatureExtractionTask, tmp_path, opset=18)
    add_output_head(path, bound)
    names = graph.input_names(path)
    encoder = TextEncoder(
        str(folder / "tokenizer.json"), max_length=64, names=names, padding={"input_ids": pipe.tokenizer.pad_token_id}
    )
    features = bound.served.preprocess([TEXTS], encoder)
    feed = encoder.arrays(features.encodings)
    found = graph.runner(graph.session(path), bound.model_outputs)(feed)
    np.testing.assert_allclose(answers(bound, found["sentence_embedding"]), wanted, atol=1e-4)
    original = original_run(pipe.model, bound, device="cpu")(feed)
    np.testing.assert_allclose(original["sentence_embedding"], wanted, atol=1e-4)


# -- what a checkpoint says ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_largest_of_tokens_is_found_in_fp16_too(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pairs_file(tmp_path / "pairs.tsv", 20, seed=3)
    given = ["--checkpoint", str(tiny_checkpoint), "--test", str(rows), "--artifacts", str(tmp_path), "--json"]
    chosen = ["--task", "feature-extraction", "--setting", "pooling=max", "--precision", "fp16"]
    assert cli.main(["export", *given, *chosen, "--max-metric-drop", "100"]) == 0
    figures = json.loads(capsys.readouterr().out)["precisions"]["fp16"]["figures"]
    assert figures["label_agreement"] > 0.99


def said(tmp_path: Path, files: dict[str, Any], **chosen: Any) -> dict[str, Any]:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}), encoding="utf-8")
    write_files(files, tmp_path)
    return read_settings(tmp_path, FeatureExtractionTask, chosen)


def modules(*kinds: str) -> list[dict[str, Any]]:
    return [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]


OLD_CLS = {"word_embedding_dimension": 8, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


@pytest.mark.parametrize(
    ("pooling", "wanted"),
    [
        (OLD_CLS, "cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}, "mean"),
        ({"pooling_mode_max_tokens": True, "include_prompt": True}, "max"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_weightedmean_tokens": False}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_old_and_new_pooling_files(pooling: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    files = {"modules.json": modules("Transformer", "Pooling", "Normalize"), "1_Pooling/config.json": pooling}
    found = said(tmp_path, files)
    assert (found["pooling"], found["normalize"], found["hidden"]) == (wanted, True, 8)


def test_a_checkpoint_without_such_files_is_pooled_by_mean_and_not_normalised(tmp_path: Path) -> None:
    bound = bound_to(said(tmp_path, {}))
    assert (bound.pooling, bound.served.normalize, bound.served.prompt, bound.served.dims) == ("mean", False, "", 8)


def test_what_is_chosen_wins(tmp_path: Path) -> None:
    files = {"modules.json": modules("Transformer", "Pooling", "Normalize")}  # the pooling's own file is lost
    with pytest.raises(ArtifactError, match=r"1_Pooling/config\.json.*is missing"):
        said(tmp_path, files)
    found = said(tmp_path, files, pooling="max", normalize="false")
    assert (found["pooling"], found["normalize"]) == ("max", False)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"modules.json": modules("Transformer", "Pooling", "Dense"), "1_Pooling/config.json": OLD_CLS}, "Dense"),
        ({"modules.json": modules("WordEmbeddings", "Pooling")}, "WordEmbeddings"),
        ({"modules.json": modules("Transformer", "Pooling"), "1_Pooling/config.json": {"pooling_mode": "sqrt"}}, "sqrt"),
        ({"modules.json": modules("Transformer", "Pooling"), "1_Pooling/config.json": {}}, "by nothing"),
        (
            {
                "modules.json": modules("Transformer", "Pooling"),
                "1_Pooling/config.json": {**OLD_CLS, "pooling_mode_mean_tokens": True},
            },
            "cls and mean",
        ),
        ({"modules.json": ["strange"]}, "does not have the expected structure"),
        ({"config_sentence_transformers.json": {"default_prompt_name": "query", "prompts": {}}}, "no prompt 'query'"),
        ({"config_sentence_transformers.json": {"truncate_dim": "many"}}, "truncate_dim"),
    ],
)
def test_what_cannot_be_done_is_refused(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=message):
        said(tmp_path, files)


def test_length_prompt_and_case_are_read(tmp_path: Path) -> None:
    files = {
        "sentence_roberta_config.json": {"max_seq_length": 32, "do_lower_case": True},
        "config_sentence_transformers.json": {"prompts": {"query": "query: "}, "default_prompt_name": "query", "truncate_dim": 4},
    }
    found = said(tmp_path, files)
    assert (found["prompt"], found["lower_case"], found["dims"]) == ("query: ", True, 4)
    assert FeatureExtractionTask.checkpoint_length(read_files(tmp_path, FeatureExtractionTask)) == 32


@pytest.mark.parametrize("normalized", [{"normalize": True}, {"dims": 4}, {"dims": 4, "unit_first": True}])
def test_what_is_written_is_what_is_read(normalized: dict[str, Any], tmp_path: Path) -> None:
    bound = task(pooling="last", prompt="query: ", strip=True, lower_case=True, **normalized)
    assert task().with_settings(said(tmp_path, bound.files_written(48))) == bound
    assert FeatureExtractionTask.checkpoint_length(read_files(tmp_path, FeatureExtractionTask)) == 48


# -- answers ---------------------------------------------------------------------------------------------------------------------


def test_normalising_either_way(embeddings: Any) -> None:
    np.testing.assert_allclose(answers(task(), embeddings, normalize=True), unit(embeddings), atol=1e-6)
    np.testing.assert_array_equal(answers(task(normalize=True), embeddings, normalize=False), embeddings)
    assert answers(task(normalize=True), np.zeros((1, 8), dtype=np.float32)).tolist() == [[0] * 8]
    assert answers(task(normalize=True), embeddings).dtype == np.float32


def test_truncation_keeps_shape_cosines_and_distances(embeddings: Any) -> None:
    before = embeddings.copy()
    found = answers(task(), embeddings, truncate_dim=3, normalize=True)
    assert found.shape == (6, 8)
    np.testing.assert_array_equal(embeddings, before)
    np.testing.assert_allclose(found[:, :3], unit(embeddings[:, :3]), atol=1e-6)
    np.testing.assert_allclose(found @ found.T, unit(embeddings[:, :3]) @ unit(embeddings[:, :3]).T, atol=1e-6)
    shown = task().served.format_answers({"EMBEDDING": found}, truncate_dim=3)
    assert [len(row) for row in shown] == [3] * 6


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"truncate_dim": 9}, "8 or less"),
        ({"truncate_dim": 0}, "1 or more"),
        ({"normalize": 1}, "true or false"),
        ({"top_k": 1}, "no option"),
    ],
)
def test_bad_options(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task().served.with_options(option)


def test_a_setting_larger_than_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="have 8 numbers"):
        task(dims=9)


def test_pipeline_forms(embeddings: Any) -> None:
    bound = task().served
    assert bound.parse_inputs("one") == [("one",)]
    assert bound.parse_inputs(["one", "two"]) == [("one",), ("two",)]
    with pytest.raises(ValueError, match="must be a string"):
        bound.parse_inputs([{"text": "one"}])
    lists = bound.format_answers({"EMBEDDING": embeddings})
    assert bound.format_result("one", lists[:1], {}) == embeddings[0].tolist()
    assert bound.format_result(["one"], lists[:1], {}) == [embeddings[0].tolist()]
    assert bound.format_result([], [], {"return_tensors": True}) == []
    arrays = bound.format_answers({"EMBEDDING": embeddings}, return_tensors=True)
    together = bound.format_result(["…"] * 6, arrays, {"return_tensors": True})
    np.testing.assert_array_equal(together, embeddings)
    assert bound.format_result("one", arrays[:1], {"return_tensors": True}).shape == (8,)
    for wrong in ({"return_tensors": "pt"}, {"tokenize_kwargs": 1}, {"tokenize_kwargs": {"return_tensors": "pt"}}):
        with pytest.raises(TypeError):
            bound.sanitize_parameters(wrong)


# -- judging ---------------------------------------------------------------------------------------------------------------------


def test_agreement_is_relative_to_how_far_texts_are_apart(embeddings: Any) -> None:
    theirs = {"EMBEDDING": embeddings}
    assert task().agreement({"EMBEDDING": 3 * embeddings}, theirs).tolist() == [1, 1, 1]
    off = embeddings.copy()
    off[4] = -off[4]  # the second text of the second pair
    assert task().agreement({"EMBEDDING": off}, theirs).tolist() == [1, 0.5, 1]
    noisy = embeddings + np.random.default_rng(1).normal(0, 0.1, embeddings.shape).astype(np.float32)
    wide = task().agreement({"EMBEDDING": noisy}, theirs)
    assert ((wide > 0.97) & (wide < 1)).all()
    near, nearer = embeddings + 5, noisy + 5  # all texts point the same way: the same noise turns them less
    assert (unit(near) * unit(nearer)).sum(axis=-1).min() > 0.999
    close = task().agreement({"EMBEDDING": nearer}, {"EMBEDDING": near})
    assert close.mean() == pytest.approx(wide.mean(), abs=0.01), "but it hides as much of what tells them apart"
    assert task().ties(theirs).tolist() == [False] * 3


def test_predictions_are_the_cosines_of_pairs(embeddings: Any) -> None:
    wanted = (unit(embeddings[:3]) * unit(embeddings[3:])).sum(axis=-1)
    np.testing.assert_allclose(task().predictions({"EMBEDDING": embeddings}), wanted, atol=1e-6)


def test_rows_and_scores() -> None:
    assert FeatureExtractionTask.read_row(("a", "b"), "3.5") == (("a", "b"), 3.5)
    assert FeatureExtractionTask.read_row(("a", "b"), 4) == (("a", "b"), 4.0)
    for wrong in ("high", "", None, True, float("nan"), [1]):
        with pytest.raises(ValueError, match="not a number"):
            FeatureExtractionTask.read_row(("a", "b"), wrong)
    with pytest.raises(ValueError, match="nothing to learn"):
        FeatureExtractionTask.from_labels([1.0, 1.0], names=(), pair=True)
    assert task().requests([["a", "b"], ["c", "d"]]) == [["a", "b", "c", "d"]]
    assert not task().is_reference("3")


def test_texts_are_prepared_as_the_checkpoint_says(tiny_checkpoint: Path) -> None:
    encoder = TextEncoder(str(tiny_checkpoint / "tokenizer.json"), max_length=64, names=["input_ids"], padding={})

    def tokens(bound: FeatureExtractionTask, text: str, **options: Any) -> Any:
        return bound.served.with_options(options).preprocess([[text]], encoder).encodings[0].ids

    assert tokens(task(prompt="the film "), "is dull") == tokens(task(), "the film is dull")
    assert tokens(task(), "is dull", prompt="the film ") == tokens(task(), "the film is dull")
    assert tokens(task(lower_case=True, prompt="The "), "FILM") == tokens(task(), "the film")
    with pytest.raises(ValueError, match="longer than"):
        tokens(task(), "the film " * 99, truncation=False)


# -- training --------------------------------------------------------------------------------------------------------------------


def cosent(cosines: list[float], labels: list[float]) -> float:
    pairs = [(i, j) for i, more in enumerate(labels) for j, less in enumerate(labels) if more > less]
    return float(np.log1p(sum(np.exp(20 * (cosines[j] - cosines[i])) for i, j in pairs)))


def test_loss_is_cosent() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 5, generator=generator, requires_grad=True)
    labels = torch.tensor([0.0, 2.5, 5.0, 2.5])
    loss = task().loss({"sentence_embedding": rows}, {"labels": labels})
    cosines = torch.nn.functional.cosine_similarity(rows[:4], rows[4:]).tolist()
    assert loss.item() == pytest.approx(cosent(cosines, labels.tolist()), rel=1e-5)
    loss.backward()
    assert torch.isfinite(rows.grad).all() and rows.grad.abs().sum() > 0


def test_loss_of_a_batch_that_teaches_nothing_is_zero() -> None:
    rows = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = task().loss({"sentence_embedding": rows}, {"labels": torch.ones(2)})
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(rows.grad).all()


class Encoded(SimpleNamespace):
    """An encoding of these ids."""

    def __len__(self) -> int:
        return len(self.ids)


def test_texts_of_a_row_stand_in_one_batch() -> None:
    encodings: Any = [Encoded(ids=[place], attention_mask=[1]) for place in (1, 2, 3, 11, 12, 13)]  # three rows of two texts
    names = ["input_ids", "attention_mask"]
    features = Features(encodings, Origins(np.arange(6)))
    columns = training_columns(features, names, {"labels": [0.1, 0.2, 0.3]}, task())
    assert columns["input_ids"] == [[[1], [11]], [[2], [12]], [[3], [13]]]
    rows = [{name: columns[name][row] for name in (*names, "labels")} for row in range(3)]
    batch = Collator({}, task())(rows)
    assert batch["input_ids"].tolist() == [[1], [2], [3], [11], [12], [13]]
    assert batch["labels"].tolist() == pytest.approx([0.1, 0.2, 0.3])


def pairs_file(path: Path, count: int, seed: int) -> Path:
    """Pairs of made-up reviews, alike where both are good or both bad; of unlike lengths, so that sorting by length shows."""
    choose = random.Random(seed)

    def review() -> tuple[bool, str]:
        good = choose.random() < 0.5
        return good, " ".join([choose.choice(GOOD if good else BAD), *choose.choices(FILLING, k=choose.choice((0, 1, 4)))])

    lines = []
    for (one, first), (other, second) in ((review(), review()) for _ in range(count)):
        lines.append(f"{first}\t{second}\t{choose.choice((4, 5)) if one == other else choose.choice((0, 1))}.0")
    path.write_text("\n".join([PAIRS_HEADER, *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(base_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    torch.set_num_threads(1)  # many are slower for a model this small
    finetune(
        FinetuneOptions(
            name="pairs",
            task="feature-extraction",
            checkpoint=str(base_checkpoint),
            train=str(pairs_file(folder / "train.tsv", 600, 1)),
            validation=str(pairs_file(folder / "validation.tsv", 90, 2)),
            setting={"pooling": "max", "normalize": True},
            training=Hyperparameters(epochs=3, learning_rate=3e-3, batch_size=16),
            max_length=32,
            device="cpu",
            artifacts=folder / "artifacts",
        )
    )
    return folder


def test_training_learns_and_its_figures_are_of_the_right_rows(trained: Path) -> None:
    checkpoint = trained / "artifacts" / "pairs" / "checkpoint"
    manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    reported = manifest["figures"]["validation"]["spearman"]
    assert reported > 0.5, "a fresh model has to learn which words are good"
    assert read_settings(checkpoint, FeatureExtractionTask, {}) == {
        "hidden": 32,
        "dims": 32,
        "pooling": "max",
        "normalize": True,
        "strip": True,
        "lower_case": False,
    }
    rows = [line.split("\t") for line in (trained / "validation.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    cosines = _cosines_by_transformers(checkpoint, rows)
    assert reported == pytest.approx(spearmanr(cosines, [float(score) for *_, score in rows])[0], abs=1e-4)


def _cosines_by_transformers(checkpoint: Path, rows: list[list[str]]) -> list[float]:
    from transformers import AutoModel

    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint).eval()

    def embedding(text: str) -> Any:
        with torch.no_grad():
            return model(**tokenizer(text, truncation=True, max_length=32, return_tensors="pt")).last_hidden_state[0].amax(0)

    return [torch.cosine_similarity(embedding(first), embedding(second), 0).item() for first, second, _ in rows]


# -- command line ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pooling=median", "option pooling must be one of mean, cls, max, last"),
        ("labels=a", "has no setting labels; it has lower_case, normalize, pooling, prompt, strip, truncate_dim, truncation"),
        ("pooling", "not of the form KEY=VALUE"),
        ("normalize=perhaps", "true or false"),
        ("truncate_dim=1.5", "a whole number"),
    ],
)
def test_bad_settings_are_wrong_usage(setting: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--task", "feature-extraction", "--setting", setting]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "written", ['setting = ["pooling=cls", "truncate-dim=16"]', "[export.setting]\npooling = 'cls'\ntruncate_dim = 16"]
)
def test_recipes_hold_settings(written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export import bundle

    seen: list[Any] = []

    def stop(options: Any) -> Any:
        seen.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "export", stop)
    (tmp_path / "r.toml").write_text(f"name = 'm'\ntask = 'feature-extraction'\n[export]\n{written}\n", encoding="utf-8")
    arguments = ["export", "--recipe", str(tmp_path / "r.toml")]
    assert cli.main(arguments) == 1
    assert cli.main([*arguments, "--setting", "normalize=true"]) == 1
    assert [options.setting for options in seen] == [{"pooling": "cls", "truncate_dim": 16}, {"normalize": True}]


def test_export_keeps_what_was_chosen_in_training(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And reads the folder of the pooling: one changed there makes another bundle."""
    artifacts = trained / "artifacts"
    arguments = ["export", "--name", "pairs", "--task", "feature-extraction", "--artifacts", str(artifacts), "--precision", "fp32"]
    assert cli.main(arguments) == 0
    manifest = json.loads((artifacts / "pairs" / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["evaluation_settings"]["pooling"], manifest["max_length"]) == ("max", 32)
    assert manifest["precisions"]["fp32"]["figures"]["label_agreement"] == 1
    assert "1_Pooling/config.json" in manifest["inputs"]["files"]
    assert cli.main([*arguments, "--setting", "truncate_dim=4"]) == 0
    output = onnx.load(str(artifacts / "pairs" / "bundle" / "fp32" / "model.onnx")).graph.output
    assert [tensor.name for tensor in output] == ["sentence_embedding"]
    assert output[0].type.tensor_type.shape.dim[1].dim_value == 4
