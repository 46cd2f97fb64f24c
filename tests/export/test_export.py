"""Export on tiny random models: every architecture, every precision, every way it can go wrong."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from export import bundle as bundles
from export import cli, graph, optimize
from export.bundle import export
from export.checkpoint import load_model, load_tokenizer, read_config, resolve_max_length, save_tokenizer
from export.columns import Columns
from export.data import EVALUATION, LabelledRows, read_evaluation, write_evaluation
from export.export_options import ExportOptions
from export.export_source import find_source
from export.rows import EncodedRows
from export.tasks import bundle_task, load_task
from serving import artifact
from serving.artifact import read_manifest, write_manifest
from serving.bundle import load_bundle
from serving.errors import ArtifactError, ExportError, GateError, SetupError
from serving.manifests import BundleManifest, VariantRecord
from serving.options import Precision
from serving.reporting import report_to_stderr
from serving.runtime import model_session
from serving.runtime.tokenization import TextEncoder
from tests.helpers.checkpoints import ARCHITECTURES
from tests.helpers.disk import full_disk
from tests.helpers.manifests import bundle_manifest, checkpoint_manifest, variant_figures
from tests.helpers.reviews import review_rows, write_tsv

# said by transformers' own modules when they are imported
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

TOLERANCE = {"fp32": 1e-4, "fp16": 0.01, "int8": 0.25}
"""Largest logit difference from PyTorch, as a share of the largest logit."""


UNEVEN = {"albert", "camembert", "deberta-v2", "xlm-roberta"}
"""Their vocabularies are of a size that leaves tensors with lengths that are no multiple of 64 bytes."""

LENIENT = {"min_agreement": 0.9, "max_metric_drop": 5.0}
"""A random model's answers are closer calls than a trained one's."""


def options(checkpoint: Path, rows: Path, artifacts: Path, **more: Any) -> ExportOptions:
    return ExportOptions(
        name="tiny",
        task="text-classification",
        checkpoint=str(checkpoint),
        test=str(rows),
        device="cpu",
        artifacts=artifacts,
        **more,
    )


def arguments(checkpoint: Path, rows: Path, *more: str) -> list[str]:
    given = ["--name", "tiny", "--task", "text-classification", "--checkpoint", str(checkpoint), "--test", str(rows)]
    return ["export", *given, "--device", "cpu", *more]


@pytest.fixture(scope="module")
def exported(
    make_checkpoint: Callable[[str], Path], review_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Architecture → folder of its bundle, exported once."""
    artifacts = tmp_path_factory.mktemp("artifacts")
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            chosen = options(make_checkpoint(architecture), review_file, artifacts / architecture, **LENIENT)
            export(chosen)
            made[architecture] = chosen.target
        return made[architecture]

    return make


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.long
def test_padded_batches_equal_pytorch(
    architecture: str, side: str, make_checkpoint: Callable[[str], Path], exported: Callable[[str], Path]
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    bundle = load_bundle(exported(architecture))
    tokenizer = AutoTokenizer.from_pretrained(make_checkpoint(architecture), padding_side=side)
    texts = ["good", "the film is never dull and the story is a delight " * 3, "", "bad with a mess of course"]
    model = AutoModelForSequenceClassification.from_pretrained(make_checkpoint(architecture)).eval()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="np", return_token_type_ids=True)
    names = graph.input_names(bundle.variants["fp32"].path)
    feed = {name: batch[name].astype(np.int64) for name in names}
    assert (feed["attention_mask"] == 0).any(), "rows are padded"
    with torch.inference_mode():
        original = model(**{name: torch.from_numpy(value) for name, value in feed.items()}).logits.numpy()
    assert set(bundle.variants) == {"fp32", "fp16", "int8"}
    for precision, variant in bundle.variants.items():
        logits = graph.session(variant.path).run(["logits"], feed)[0]
        assert logits.dtype == np.float32
        assert np.abs(logits - original).max() <= TOLERANCE[precision] * max(1.0, np.abs(original).max()), precision


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.long
def test_weights_mapped_by_several_instances_change_no_answer(
    architecture: str, exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the embedded server does where a model has several instances on a CPU, for graphs of every kind."""
    import onnxruntime as ort

    monkeypatch.setenv(model_session.WEIGHTS_FOLDER, str(tmp_path / "weights"))
    bundle = load_bundle(exported(architecture))
    for variant in bundle.variants.values():
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        alone = ort.InferenceSession(str(variant.path), options)
        mapped = model_session._optimized(variant.path, options)
        if mapped is None:
            assert architecture in UNEVEN
            continue
        assert (mapped.parent / "weights").stat().st_size > 0
        written = mapped.stat().st_mtime_ns
        shared = model_session.open_with_mapped_weights(variant.path, threads=1)
        assert shared is not None and mapped.stat().st_mtime_ns == written, "the second instance takes what the first wrote"
        encoder = bundle.encoder([node.name for node in alone.get_inputs()])
        feed = encoder.arrays(encoder.encode(["good", "the film is never dull and the story is a delight"]))
        np.testing.assert_array_equal(shared.run(None, feed)[0], alone.run(None, feed)[0])


def test_bundle_holds_what_it_promises(exported: Callable[[str], Path], review_file: Path) -> None:
    folder = exported("bert")
    manifest = read_manifest(folder, BundleManifest)
    assert set(manifest.files) == {
        "fp32/model.onnx",
        "fp16/model.onnx",
        "int8/model.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
        "config.json",
        EVALUATION,
    }
    assert (manifest.task, manifest.labels, manifest.max_length) == ("text-classification", ("negative", "positive"), 64)
    assert manifest.padding == {"input_ids": 0, "token_type_ids": 0}
    assert json.loads(json.dumps(load_bundle(folder).task.to_settings())) == manifest.settings
    original = manifest.original
    assert original.rows == 300
    assert original.checkpoint.name == "bert"
    assert "accuracy" in original.metrics
    for precision, record in manifest.precisions.items():
        assert (record.file, record.verdict) == (f"{precision}/model.onnx", "passed")
        figures = record.figures
        assert figures.bytes == (folder / record.file).stat().st_size
        assert min(figures.throughput.one_by_one, figures.throughput.batched, figures.latency_ms) > 0
        assert figures.speed_device == "cpu"
    assert manifest.precisions["fp32"].figures.operators == {
        "Attention": 2,
        "BiasGelu": 2,
        "EmbedLayerNormalization": 1,
        "SkipLayerNormalization": 4,
    }
    assert manifest.precisions["fp16"].figures.fp32_nodes == ()
    assert len(read_evaluation(folder, bundle_task(load_bundle(folder)))) == 300
    assert str(folder.parents[1]) not in manifest.model_dump_json(), "no paths of this machine"


def test_positions_are_computed_in_fp32(exported: Callable[[str], Path]) -> None:
    """mpnet's relative positions pass through a logarithm; in fp16 some land in the next bucket and logits are off by 0.1."""
    figures = read_manifest(exported("mpnet"), BundleManifest).precisions["fp16"].figures
    assert any("Log" in name for name in figures.fp32_nodes)
    assert figures.max_logit_difference < 0.02


def test_batch_and_sequence_axes_are_free(exported: Callable[[str], Path]) -> None:
    bundle = load_bundle(exported("bert"))
    for variant in bundle.variants.values():
        session = graph.session(variant.path)
        for rows, length in ((1, 1), (3, 64)):
            feed = {tensor.name: np.ones((rows, length), dtype=np.int64) for tensor in session.get_inputs()}
            assert session.run(["logits"], feed)[0].shape == (rows, 2)


def test_encoder_gives_the_ids_of_training(exported: Callable[[str], Path], make_checkpoint: Callable[[str], Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_checkpoint("bert"))
    text = "the film was never dull, " * 30
    (encoding,) = load_bundle(exported("bert")).encoder(["input_ids"]).encode([text])
    assert encoding.ids == tokenizer(text, truncation=True, max_length=64)["input_ids"]
    assert len(encoding.ids) == 64


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_cut_on_the_side_of_training(side: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint, truncation_side=side)
    save_tokenizer(tokenizer, tmp_path, max_length=8)
    encoder = TextEncoder(str(tmp_path / "tokenizer.json"), max_length=8, names=[], padding={})
    text = "good film of course but dull and cold again"
    assert encoder.encode([text])[0].ids == tokenizer(text, truncation=True, max_length=8)["input_ids"]


def test_pairs_are_told_apart(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = [(text, "the film is good", str(int(label == "positive"))) for text, label in review_rows(40, seed=5)]
    (tmp_path / "pairs.csv").write_text("text,other,label\n" + "\n".join(",".join(row) for row in rows))
    chosen = options(tiny_checkpoint, tmp_path / "pairs.csv", tmp_path, columns=Columns(text_pair="other"), precision=("fp32",))
    manifest = export(chosen)
    assert manifest.settings["pair"] is True
    assert list(manifest.precisions) == ["fp32"]
    encoder = load_bundle(chosen.target).encoder(["token_type_ids"])
    assert set(encoder.encode([("a", "b")])[0].type_ids) == {0, 1}


# Gates on the command line


def spoil(path: Path, shift: float) -> None:
    """Add ``shift`` to a graph's first logit."""
    model = graph.load(path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32([shift, 0]), bias.name))
    graph.save(model, path)


def test_failed_variant_is_left_out_and_asked_for_fails(
    tiny_checkpoint: Path, review_file: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to_int8 = optimize.to_int8

    def quantise_badly(raw: Path, target: Path) -> None:
        to_int8(raw, target)
        spoil(target, 20)

    monkeypatch.setattr(optimize, "to_int8", quantise_badly)
    folder = in_folder / "artifacts" / "tiny" / "bundle"
    asked = ["--precision", "fp32,int8"]
    assert cli.main(arguments(tiny_checkpoint, review_file, "--max-metric-drop", "100")) == 0
    output = capsys.readouterr().err
    manifest = read_manifest(folder, BundleManifest)
    record = manifest.precisions["int8"]
    assert record.verdict == "failed"
    assert record.figures.label_agreement < 0.97
    assert "int8/model.onnx" not in manifest.files
    assert not (folder / "int8").exists()
    assert f"int8 is left out of the bundle: {record.gates[2].message}" in output
    with pytest.raises(ArtifactError, match=r"failed its gates: .* labels agree"):
        load_bundle(folder).variant("int8")

    assert cli.main(arguments(tiny_checkpoint, review_file, *asked)) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: int8 failed: ")
    assert cli.main(arguments(tiny_checkpoint, review_file, *asked)) == 1
    again = capsys.readouterr().err
    assert "is up to date" in again
    assert again.splitlines()[-1].startswith("error: int8 failed: "), "the verdict does not fade"


def test_json_goes_to_standard_output_alone(
    tiny_checkpoint: Path, review_file: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(tiny_checkpoint, review_file, "--precision", "fp32", "--verify-rows", "70", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["artifact"] == "artifacts/tiny/bundle"
    assert found["original"]["rows"] == 70
    assert list(found["precisions"]) == ["fp32"]


def test_wrong_fp32_fails_always_and_keeps_the_old_bundle(
    tiny_checkpoint: Path, review_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options(tiny_checkpoint, review_file, tmp_path, precision=("fp32",), verify_rows=50)
    export(chosen)
    before = (chosen.target / "manifest.json").read_bytes()
    fuse = optimize.fuse

    def fuse_wrongly(raw: Path, checkpoint: Path, target: Path) -> str:
        done = fuse(raw, checkpoint, target)
        spoil(target, 0.01)
        return done

    monkeypatch.setattr(optimize, "fuse", fuse_wrongly)
    with pytest.raises(GateError, match=r"fp32 failed: .*logits differ by up to 0\.01, the limit is 0\.001"):
        export(options(tiny_checkpoint, review_file, tmp_path, precision=("int8",), verify_rows=50, force=True))
    assert (chosen.target / "manifest.json").read_bytes() == before
    assert [path.name for path in chosen.target.parent.iterdir()] == ["bundle"], "nothing half-written"


def test_unchanged_inputs_are_not_exported_again(
    exported: Callable[[str], Path], make_checkpoint: Callable[[str], Path], review_file: Path
) -> None:
    folder = exported("bert")
    same = ["--artifacts", str(folder.parents[1]), "--min-agreement", "0.9", "--max-metric-drop", "5"]
    code = (
        "import sys; from export.cli import main; rc = main(sys.argv[1:]); "
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(rc)"
    )
    command = [sys.executable, "-c", code, *arguments(make_checkpoint("bert"), review_file, *same)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{folder} is up to date" in done.stderr
    assert done.stderr.splitlines()[-1] == "False", "nothing heavy is imported to find that out"


def test_asking_for_one_variant_more_or_less_keeps_what_is_there(
    tiny_checkpoint: Path, review_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(*precision: str) -> set[str]:
        with report_to_stderr():
            export(options(tiny_checkpoint, review_file, tmp_path, precision=precision, **LENIENT))
        return set(read_manifest(tmp_path / "tiny" / "bundle", BundleManifest).precisions)

    assert made("int8") == {"fp32", "int8"}
    assert made("fp32") == {"fp32", "int8"}
    assert "is up to date" in capsys.readouterr().err
    assert made("fp16") == {"fp32", "fp16", "int8"}


def test_where_what_decides_on_a_bundle_changed_it_is_not_up_to_date(
    tiny_checkpoint: Path, review_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "verify.py"
    module.write_text("gates = 1")
    monkeypatch.setattr(artifact, "PROJECT", tmp_path)
    monkeypatch.setattr(bundles, "SHAPING", ("verify.py",))
    monkeypatch.setattr(bundles, "TASK_SHAPING", ())
    chosen = options(tiny_checkpoint, review_file, tmp_path, precision=("fp32",))
    source = find_source(chosen)
    before = bundles._inputs(chosen, source)
    assert bundles._inputs(chosen, source) == before
    module.write_text("gates = 2")
    assert bundles._inputs(chosen, source) != before


# Few rows


def test_few_rows_are_verified_on_with_a_warning(
    tiny_checkpoint: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_tsv(in_folder / "few.tsv", review_rows(20, seed=4))
    for _ in range(2):  # the second is up to date, and says it again
        assert cli.main(arguments(tiny_checkpoint, rows, "--precision", "fp32")) == 0
        assert "\nwarning: verified on only 20 rows, fewer than 64, which is weak evidence" in capsys.readouterr().err
    assert len(read_manifest(in_folder / "artifacts" / "tiny" / "bundle", BundleManifest).warnings) == 1


def test_fewer_rows_than_64_cannot_be_asked_for(
    tiny_checkpoint: Path, review_file: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(tiny_checkpoint, review_file, "--verify-rows", "63")) == 2
    assert "'--verify-rows': 63 is not in the range x>=64" in capsys.readouterr().err
    assert not (in_folder / "artifacts").exists()


def test_speeds_of_unlike_devices_are_told_apart() -> None:
    from export.variant_table import speed_devices

    devices = {"fp32": "gpu", "fp16": "gpu", "int8": "cpu"}

    def measured_on(**devices: str) -> dict[Precision, VariantRecord]:
        made = {
            precision: {"file": "", "verdict": "passed", "gates": (), "figures": variant_figures(speed_device=device)}
            for precision, device in devices.items()
        }
        return bundle_manifest(precisions=made).precisions

    assert (
        speed_devices(measured_on(**devices)) == "PyTorch, fp32, fp16 on the GPU; int8 on one CPU thread, which is not comparable"
    )
    assert speed_devices(measured_on(fp32="cpu")) == "one thread"


# How long rows may be


def test_a_checkpoint_not_fine_tuned_here_is_cut_where_the_model_ends() -> None:
    limited, unlimited = SimpleNamespace(model_max_length=400), SimpleNamespace(model_max_length=10**30)
    own = {"model_type": "bert", "max_position_embeddings": 300}
    endless = {"model_type": "deberta-v2", "max_position_embeddings": -1}
    assert resolve_max_length(None, limited, own, default=None) == 300
    assert resolve_max_length(None, limited, endless, default=None) == 400
    assert resolve_max_length(None, unlimited, endless, default=None) == 512
    assert resolve_max_length(9, limited, own, default=None) == 9
    assert resolve_max_length(None, limited, own, default=128) == resolve_max_length(None, unlimited, endless, default=128) == 128
    assert resolve_max_length(None, SimpleNamespace(model_max_length=64), own, default=128) == 64


@pytest.mark.long
def test_the_chosen_length_is_said(
    make_checkpoint: Callable[[str], Path], review_file: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(checkpoint: Path, *more: str) -> str:
        assert cli.main(arguments(checkpoint, review_file, "--precision", "fp32", "--verify-rows", "64", *more)) == 0
        return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("rows are truncated at "))

    # its positions are relative: no weights depend on how many there may be
    long = changed(make_checkpoint("deberta-v2"), in_folder / "long", max_position_embeddings=150)
    tokenizer = json.loads((long / "tokenizer_config.json").read_text()) | {"model_max_length": 10**30}
    (long / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert said(long) == "rows are truncated at 150 tokens, the model's limit (--max-length reduces this)"
    assert read_manifest(in_folder / "artifacts" / "tiny" / "bundle", BundleManifest).max_length == 150
    assert said(long, "--max-length", "32") == "rows are truncated at 32 tokens, as requested"
    write_manifest(long, checkpoint_manifest(max_length=48))
    assert said(long) == "rows are truncated at 48 tokens, as in fine-tuning"


@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta"])
def test_a_length_the_model_does_not_take_is_noticed(architecture: str, make_checkpoint: Callable[[str], Path]) -> None:
    """RoBERTa and its kin count positions by tokens that are no padding; that has the id 2 here, in the wild 1."""
    from export.original import original_run, require_length

    task = load_task("text-classification", {"labels": ["negative", "positive"], "function_to_apply": "softmax", "pair": False})
    config = read_config(make_checkpoint(architecture))
    tokenizer = load_tokenizer(make_checkpoint(architecture))
    run = original_run(load_model(make_checkpoint(architecture), type(task), tokenizer), task, device="cpu")
    names, padding = ["input_ids", "attention_mask"], {config["pad_token_id"]}
    limit = resolve_max_length(None, SimpleNamespace(model_max_length=10**30), config, default=None)
    require_length(run, names, limit, padding=padding)
    with pytest.raises(ArtifactError, match=f"cannot take {limit + 1} tokens"):
        require_length(run, names, limit + 1, padding=padding)


@pytest.mark.parametrize("padding", [{0}, {1}, {2}, {2, 3}, {1, None}])
def test_length_is_tried_with_an_id_that_is_no_padding(padding: set[int | None]) -> None:
    from export.original import require_length

    def run(feed: dict[str, Any]) -> dict[str, Any]:
        assert not set(np.unique(feed["input_ids"])) & padding
        assert set(feed["attention_mask"][0]) == {1} and set(feed["token_type_ids"][0]) == {0}
        return {"logits": np.zeros((1, 2), np.float32)}

    require_length(run, ["input_ids", "attention_mask", "token_type_ids"], 8, padding=padding)


def test_a_config_without_a_padding_id_has_positions_all_the_same() -> None:
    tokenizer = SimpleNamespace(model_max_length=10**30)
    for padding in ({}, {"pad_token_id": None}, {"pad_token_id": 1}):
        config = {"model_type": "roberta", "max_position_embeddings": 514} | padding
        assert resolve_max_length(None, tokenizer, config, default=None) == 512


def test_without_a_usable_gpu_auto_is_the_cpu_and_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from export import original

    monkeypatch.setattr(original.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(original, "resolve_device", lambda device: "gpu" if device == "auto" else device)
    assert original.usable_device("cpu") == "cpu"
    assert caplog.messages == []
    assert original.usable_device("auto") == "cpu"
    assert "torch or ONNX Runtime does not find it" in caplog.text
    with pytest.raises(SetupError, match="torch or ONNX Runtime does not find a GPU"):
        original.usable_device("gpu")


# What is refused


@pytest.mark.parametrize(("pair", "refused"), [(False, True), (True, False)])
def test_single_texts_with_type_ids_of_their_own_are_refused(
    pair: bool, refused: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The served graph derives them as zeros, so such a tokenizer would be served with other answers than were verified."""
    content = json.loads((tiny_checkpoint / "tokenizer.json").read_text())
    for piece in content["post_processor"]["single"]:
        next(iter(piece.values()))["type_id"] = 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    task = load_task("text-classification", {"labels": ["negative", "positive"], "function_to_apply": "softmax", "pair": pair})
    texts = (("good", "bad"), ("a", "b"))[: 1 + pair]
    encoder = TextEncoder(str(tmp_path / "tokenizer.json"), max_length=16, names=names, padding={})
    rows = EncodedRows(LabelledRows(texts=texts, labels=(1, 0)), task, encoder)
    rows.require_plain_types(names[:2])
    if refused:
        with pytest.raises(ExportError, match="token_type_ids other than 0, such as row 1: 'good'"):
            rows.require_plain_types(names)
    else:
        rows.require_plain_types(names)


def test_export_refuses_type_ids_that_would_be_served_otherwise(
    tiny_checkpoint: Path, review_file: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_checkpoint, in_folder / "typed")
    path = in_folder / "typed" / "tokenizer.json"
    content = json.loads(path.read_text())
    for piece in content["post_processor"]["single"]:
        next(iter(piece.values()))["type_id"] = 1
    path.write_text(json.dumps(content))
    assert cli.main(arguments(in_folder / "typed", review_file)) == 1
    assert "error: the tokenizer gives single texts token_type_ids other than 0" in capsys.readouterr().err


def changed(checkpoint: Path, folder: Path, **config: Any) -> Path:
    """A copy of a checkpoint with another config."""
    shutil.copytree(checkpoint, folder)
    content = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architectures": ["BertForMaskedLM"]},
            "is not a text-classification checkpoint: its config names BertForMaskedLM",
        ),
        ({"architectures": None}, "its config names no architecture"),
        ({"model_type": "funnel"}, "Optimum cannot export the architecture 'funnel'"),
        ({"model_type": "trocr"}, "Optimum cannot export the architecture 'trocr' for text-classification, only for"),
        (
            {"id2label": {"0": "same", "1": "same"}},
            "changed cannot be served for text-classification: its labels are not all different: same, same",
        ),
        ({"problem_type": "regression"}, "it predicts 2 numbers per row, negative, positive, but only one number can be evaluated"),
        ({"hidden_size": 36}, "in another shape than BertForSequenceClassification by its config.json, where "),
    ],
)
def test_unfit_checkpoints_are_refused(
    config: dict[str, Any], message: str, tiny_checkpoint: Path, review_file: Path, in_folder: Path
) -> None:
    folder = changed(tiny_checkpoint, in_folder / "changed", **config)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert cli.main(arguments(folder, review_file)) == 1
    last = said.getvalue().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert not (in_folder / "artifacts" / "tiny" / "bundle").exists()


def test_missing_and_damaged_input_is_refused(
    tiny_checkpoint: Path, review_file: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> str:
        assert cli.main(list(arguments)) == 1
        return capsys.readouterr().err.splitlines()[-1]

    assert "no checkpoint at artifacts/tiny/checkpoint (make one with: tritonize finetune --name tiny)" in said(
        "export", "--name", "tiny"
    )
    assert "no labelled rows to verify on (give rows with --test)" in said("export", "--checkpoint", str(tiny_checkpoint))
    other = write_tsv(in_folder / "other.tsv", [("fine", "neutral"), ("good", "positive")])
    assert "unknown label 'neutral', known labels: negative, positive" in said(*arguments(tiny_checkpoint, other))
    assert "takes at most 80 tokens, not 81" in said(*arguments(tiny_checkpoint, review_file, "--max-length", "81"))
    torn = changed(tiny_checkpoint, in_folder / "torn")
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:1000])
    assert "torn/model.safetensors is damaged: " in said(*arguments(torn, review_file))
    assert not list((in_folder / "artifacts").rglob("*.onnx"))


def test_rows_without_the_texts_that_the_checkpoint_takes_are_refused(
    tiny_checkpoint: Path, review_file: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = changed(tiny_checkpoint, in_folder / "pairs")
    write_manifest(pairs, checkpoint_manifest(pair=True))
    assert cli.main(arguments(pairs, review_file)) == 1
    message = "error: the checkpoint takes 2 texts per row, but the rows have 1"
    hint = "(name the columns with --text-column and --text-pair-column)"
    assert capsys.readouterr().err.splitlines()[-1] == f"{message} {hint}"
    write_evaluation(LabelledRows(texts=(("good",),), labels=(1,)), tiny := changed(tiny_checkpoint, in_folder / "tiny"))
    assert cli.main(["export", "--checkpoint", str(tiny), "--text-pair-column", "other"]) == 1
    message = "must have rows with the columns text, text_pair and label, but has the columns text, label"
    assert capsys.readouterr().err.splitlines()[-1].endswith(message)


def test_full_disk_is_one_line_and_leaves_nothing(
    tiny_checkpoint: Path, review_file: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_disk():
        assert cli.main(arguments(tiny_checkpoint, review_file)) == 1
    target = in_folder / "artifacts" / "tiny" / "bundle"
    remedy = "(free space on its disk, and run the same command again)"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: cannot write {target}: File too large {remedy}"
    assert not list((in_folder / "artifacts" / "tiny").iterdir())


def test_a_tokenizer_that_cannot_be_served_is_refused(
    tiny_checkpoint: Path, review_file: Path, in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the checkpoint's tokenizer does in Python, tokenizer.json does not do: every row is compared."""
    from transformers import PreTrainedTokenizerFast

    call = PreTrainedTokenizerFast.__call__

    def lower_in_python(self: Any, text: str, *more: Any, **options: Any) -> Any:
        return call(self, text.replace("good", "bad"), *more, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", lower_in_python)
    assert cli.main(arguments(tiny_checkpoint, review_file)) == 1
    assert "tokenizer.json and the checkpoint's tokenizer give different input_ids for row" in capsys.readouterr().err
