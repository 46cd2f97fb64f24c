"""Fine-tuning end to end on a tiny model: what it writes, when it runs, how it goes on after an interruption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from export import cli, splits
from export.data import EVALUATION, LabelledRows, Rows, read_evaluation
from export.tasks import load_task
from serving.artifact import is_current, read_manifest
from serving.errors import DataError
from serving.manifests import CheckpointManifest
from tests.helpers.disk import full_disk
from tests.helpers.reviews import TRAINING, review_rows, write_tsv


@pytest.fixture
def data(in_folder: Path) -> Path:
    """Folder with train.tsv, validation.tsv and test.tsv; also the working directory."""
    for seed, (split, count) in enumerate({"train": 240, "validation": 60, "test": 50}.items()):
        write_tsv(in_folder / f"{split}.tsv", review_rows(count, seed=10 + seed))
    return in_folder


def command(checkpoint: Path, *more: str) -> list[str]:
    splits = ("--train", "train.tsv", "--validation", "validation.tsv", "--test", "test.tsv")
    return ["finetune", "--checkpoint", str(checkpoint), *splits, *TRAINING, *more]


def run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own; its last line of output says whether torch was imported."""
    code = (
        "import sys; from export.cli import main; rc = main(sys.argv[1:]); "
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(rc)"
    )
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_whole_run(data: Path, base_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every_epoch = ("--early-stopping", "0")
    assert cli.main(command(base_checkpoint, *every_epoch, "--json")) == 0
    output = capsys.readouterr()
    folder = data / "artifacts" / "tiny" / "checkpoint"
    manifest = read_manifest(folder, CheckpointManifest)
    assert json.loads(output.out)["figures"] == manifest.figures.model_dump(mode="json")
    assert "step 90 of 90" in output.err

    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert config["label2id"] == {"negative": 0, "positive": 1}
    assert {"model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md", EVALUATION} <= set(manifest.files)
    assert (manifest.task, manifest.max_length, manifest.pair, manifest.labels) == (
        "text-classification",
        32,
        False,
        ("negative", "positive"),
    )
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["model_max_length"] == 32, "the library truncates where it was trained"
    assert not (data / "artifacts" / "tiny" / ".training").exists()

    figures = manifest.figures
    assert figures.splits["test"]["accuracy"] > 0.9, "the words give the label away"
    assert figures.rows == {"train": 240, "validation": 60, "test": 50}
    assert f"| test | 50 | {figures.splits['test']['accuracy']:.4f} |" in (folder / "README.md").read_text()
    assert accuracy_of(folder) == pytest.approx(figures.splits["test"]["accuracy"]), "the figure is that of the model written"

    again = run(command(base_checkpoint, *every_epoch))
    assert again.returncode == 0
    assert "artifacts/tiny/checkpoint is up to date" in again.stderr
    assert again.stderr.splitlines()[-1] == "False", "nothing heavy is imported to find that out"
    assert not is_current(folder, CheckpointManifest, manifest.inputs.model_copy(update={"options": {}}))


def evaluation_of(folder: Path) -> LabelledRows:
    manifest = read_manifest(folder, CheckpointManifest)
    return read_evaluation(folder, load_task(manifest.task, manifest.settings))


def accuracy_of(folder: Path) -> float:
    """Accuracy of a written checkpoint on its own evaluation rows."""
    from transformers import pipeline

    rows = evaluation_of(folder)
    answers = pipeline("text-classification", str(folder), device="cpu")(list(rows.texts[0]), truncation=True, max_length=32)
    names = ("negative", "positive")
    return sum(answer["label"] == names[label] for answer, label in zip(answers, rows.labels, strict=True)) / len(rows)


def test_tokens_are_the_same_however_many_rows_are_made_at_a_time(
    data: Path, base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export.training import encoding

    figures = []
    for at_once in (20_000, 7):
        monkeypatch.setattr(encoding, "CHUNK_TEXTS", at_once)
        assert cli.main(command(base_checkpoint, "--epochs", "2", "--force")) == 0
        manifest = read_manifest(data / "artifacts" / "tiny" / "checkpoint", CheckpointManifest)
        figures.append((manifest.figures.validation, manifest.files["model.safetensors"]))
    assert figures[0] == figures[1]


def test_interrupted_run_resumes_from_its_last_epoch(
    data: Path, base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from export.training import encoding
    from export.training.progress import TrainingProgress

    said = TrainingProgress.on_evaluate

    def say_and_press_ctrl_c(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        said(self, args, state, control, **more)
        if state.epoch == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "on_evaluate", say_and_press_ctrl_c)
        assert cli.main(command(base_checkpoint)) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("interrupted: no half-written artifact is left")
    folder = data / "artifacts" / "tiny"
    assert not (folder / "checkpoint").exists()

    (folder / ".training" / "tokens" / "validation").rename(folder / ".training" / "tokens" / "validation.torn")
    torn = folder / ".training" / "checkpoint-9999"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_st')
    written: list[Path] = []
    write = encoding._write
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "_write", lambda *given, **named: written.append(given[2]) or write(*given, **named))
        assert cli.main(command(base_checkpoint)) == 0
    assert [folder.name for folder in written] == ["validation"], "tokens that are there are taken, if they are whole"
    output = capsys.readouterr().err
    assert "resuming after checkpoint-30" in output
    assert "epoch 2:" not in output
    assert not (folder / ".training").exists()
    resumed = read_manifest(folder / "checkpoint", CheckpointManifest).files["model.safetensors"]

    assert cli.main(command(base_checkpoint, "--force")) == 0
    assert read_manifest(folder / "checkpoint", CheckpointManifest).files["model.safetensors"] == resumed, "as if never interrupted"


def test_epochs_of_another_run_are_not_resumed(data: Path, base_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scratch = data / "artifacts" / "tiny" / ".training"
    (scratch / "checkpoint-15").mkdir(parents=True)
    (scratch / "inputs.json").write_text("{}")
    (scratch / "checkpoint-15" / "trainer_state.json").write_text('{"global_step": 15}')
    assert cli.main(command(base_checkpoint, "--epochs", "1")) == 0
    assert "resuming" not in capsys.readouterr().err


def test_early_stopping_and_held_out_rows(data: Path, base_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "finetune",
        "--checkpoint",
        str(base_checkpoint),
        "--train",
        "train.tsv",
        *TRAINING,
        "--epochs",
        "9",
        "--learning-rate",
        "1e-12",
        "--early-stopping",
        "2",
        "--max-train-rows",
        "32",
    ]
    assert cli.main(arguments) == 0
    manifest = read_manifest(data / "artifacts" / "tiny" / "checkpoint", CheckpointManifest)
    held_out = manifest.figures.rows["validation"]
    assert manifest.figures.epochs == 3, "the first, and two that were no better"
    assert manifest.figures.best_epoch == 1
    assert manifest.figures.rows["train"] == 32
    assert f"no --validation: {held_out} of the training rows are held out" in capsys.readouterr().err
    assert len(evaluation_of(data / "artifacts" / "tiny" / "checkpoint")) == held_out
    assert manifest.figures.test is None


def test_pairs_and_numbered_labels(data: Path, base_checkpoint: Path) -> None:
    rows = [(text, "the film is good", str(int(label == "positive"))) for text, label in review_rows(64, seed=5)]
    (data / "pairs.csv").write_text("a,b,gold\n" + "\n".join(",".join(row) for row in rows))
    columns = ["--text-column", "a", "--text-pair-column", "b", "--label-column", "gold"]
    arguments = ["finetune", "--checkpoint", str(base_checkpoint), "--train", "pairs.csv", *TRAINING, "--epochs", "1", *columns]
    assert cli.main(arguments) == 0
    folder = data / "artifacts" / "tiny" / "checkpoint"
    manifest = read_manifest(folder, CheckpointManifest)
    assert (manifest.pair, manifest.labels) == (True, ("0", "1"))
    assert evaluation_of(folder).texts[1][0] == "the film is good"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--text-column", "nope"), "no column 'nope'"),
        (("--train", "absent.tsv"), "no file absent.tsv"),
        (("--test", "other.tsv"), "row 2: unknown label 'neutral', known labels: negative, positive: ('fine',)"),
        (("--test", "numbers.tsv"), "but numbers.tsv has labels such as 1 (whole numbers)"),
        (("--validation", "lists.tsv"), "but lists.tsv has labels such as ['negative'] (lists of names)"),
        (("--validation", "broken.tsv"), "line 2: the label is not a list of names or whole numbers"),
        (("--train", "one.tsv"), "one label only, 'negative'"),
        (("--checkpoint", "."), "it has no config.json"),
    ],
)
def test_bad_input_is_told_before_torch_is_imported(
    data: Path, base_checkpoint: Path, change: tuple[str, str], message: str
) -> None:
    write_tsv(data / "other.tsv", [("good", "positive"), ("fine", "neutral")])
    write_tsv(data / "numbers.tsv", [("good", "1")])
    write_tsv(data / "one.tsv", [("bad", "negative")])
    write_tsv(data / "lists.tsv", [("bad", '["negative"]')])
    write_tsv(data / "broken.tsv", [("bad", "['negative']")])
    done = run(command(base_checkpoint, *change))
    assert done.returncode == 1
    *_, line, torch_imported = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert torch_imported == "False"
    assert not (data / "artifacts" / "tiny").exists()


@pytest.mark.parametrize(
    ("train", "other", "message"),
    [
        (("a",), ("b",), ""),
        ((0.5,), (1,), ""),
        (([], ["a"]), (["b"],), ""),
        ((["a"],), ([],), ""),
        ((1,), (0.5,), "train has labels such as 1 (whole numbers), but other has labels such as 0.5 (numbers)"),
        (
            (["a"],),
            ([], [0]),
            "train has labels such as ['a'] (lists of names), but other has labels such as [] (lists of whole n",
        ),
        ((["a"],), ("a",), "train has labels such as ['a'] (lists of names), but other has labels such as 'a' (names)"),
    ],
)
def test_labels_of_two_files_must_be_of_one_kind(train: tuple[Any, ...], other: tuple[Any, ...], message: str) -> None:
    """Whole numbers where the training rows have names would pass for positions."""
    ours, theirs = (
        Rows(location=name, texts=(("",) * len(labels),), labels=labels) for name, labels in (("train", train), ("other", other))
    )
    if not message:
        splits._require_same_label_type(ours, theirs)
        return
    with pytest.raises(DataError) as caught:
        splits._require_same_label_type(ours, theirs)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("size", "message"), [(20_000, "cannot write the rows' tokens into "), (100_000, "cannot write an epoch into ")]
)
def test_full_disk_is_one_line_and_leaves_nothing(
    data: Path, base_checkpoint: Path, size: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_disk(size):
        assert cli.main(command(base_checkpoint)) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {message}")
    assert last.endswith("(is the disk full?)")
    assert not list((data / "artifacts" / "tiny" / ".training" / "tokens").glob("*.torn"))
    assert not (data / "artifacts" / "tiny" / "checkpoint").exists()


def test_several_gpus_are_one_device(
    data: Path, base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trainer wraps the model in nn.DataParallel where its arguments count two GPUs."""
    from transformers import TrainingArguments

    from export.training import train

    seen: list[Any] = []
    count, build = TrainingArguments.__post_init__, train.training_arguments

    def count_two(self: Any) -> None:
        count(self)
        self._n_gpu = 2

    monkeypatch.setattr(TrainingArguments, "__post_init__", count_two)
    monkeypatch.setattr(train, "training_arguments", lambda job: seen.append(build(job)) or seen[-1])
    assert cli.main(command(base_checkpoint, "--epochs", "1")) == 0
    assert [(arguments.n_gpu, arguments.train_batch_size) for arguments in seen] == [(1, 16)]


def test_training_that_diverged_is_told(
    data: Path, base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(base_checkpoint, "--epochs", "1", "--learning-rate", "1e38")) == 1
    assert "error: training diverged: " in capsys.readouterr().err
    assert not (data / "artifacts" / "tiny" / "checkpoint").exists()


def test_too_long_rows_and_missing_fast_tokenizer_are_refused(
    data: Path, base_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(base_checkpoint, "--max-length", "81")) == 1
    assert "at most 80 tokens, not 81" in capsys.readouterr().err
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((base_checkpoint / name).read_bytes())
    assert cli.main(command(bare)) == 1
    assert "error: cannot load the tokenizer of" in capsys.readouterr().err
    assert not (data / "artifacts" / "tiny" / "checkpoint").exists()


def test_a_threshold_is_chosen_by_the_validation_rows(
    data: Path, base_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = review_rows(300, seed=6)
    lines = [f"{text},{int(label == 'positive')},{int('the film' in text)}" for text, label in rows]
    (data / "rows.csv").write_text("text,nice,film\n" + "\n".join(lines))
    arguments = ["finetune", "--checkpoint", str(base_checkpoint), "--train", "rows.csv", *TRAINING, "--epochs", "2"]
    arguments += ["--label-column", "nice", "--label-column", "film"]
    assert cli.main(arguments) == 0
    folder = data / "artifacts" / "tiny" / "checkpoint"
    manifest = read_manifest(folder, CheckpointManifest)
    threshold = manifest.fitted_settings["threshold"]
    assert f"threshold {threshold:g} does best on the validation rows: f1_micro " in capsys.readouterr().err
    assert manifest.labels == ("nice", "film") and manifest.settings["threshold"] == threshold
    assert manifest.chosen_settings == {"threshold": threshold}, "what export goes on with"
    assert f"The threshold that does best on the validation rows is {threshold:g}." in (folder / "README.md").read_text()

    assert cli.main([*arguments, "--setting", "threshold=0.7"]) == 0
    manifest = read_manifest(folder, CheckpointManifest)
    assert (manifest.fitted_settings, manifest.settings["threshold"]) == ({}, 0.7)
