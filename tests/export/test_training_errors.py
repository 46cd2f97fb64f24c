"""What goes wrong while a model trains: each time one line that says what to do, and nothing half-written."""

from __future__ import annotations

import functools
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from export import cli
from serving.artifact import read_manifest
from serving.manifests import CheckpointManifest
from tests.helpers.reviews import review_rows, write_tsv

SMALL = ("--epochs", "4", "--batch-size", "16", "--max-length", "32", "--learning-rate", "5e-3", "--device", "cpu")


@pytest.fixture
def data(in_folder: Path) -> Path:
    """Folder with train.tsv and validation.tsv; also the working directory."""
    seen: set[str] = set()
    for seed, (split, count) in enumerate({"train": 240, "validation": 60}.items()):
        rows = [row for row in review_rows(2 * count, seed=40 + seed) if not (row[0] in seen or seen.add(row[0]))]
        write_tsv(in_folder / f"{split}.tsv", rows[:count])
    return in_folder


def command(checkpoint: Path, *more: str, name: str = "tiny") -> list[str]:
    files = ("--train", "train.tsv", "--validation", "validation.tsv")
    return ["finetune", "--name", name, "--checkpoint", str(checkpoint), *files, *SMALL, *more]


def spoil(monkeypatch: pytest.MonkeyPatch, step: int, spoilt: Callable[[Any], Any]) -> None:
    """Let the model's ``step``-th call while training come out otherwise."""
    from transformers import BertForSequenceClassification

    forward, calls = BertForSequenceClassification.forward, []

    @functools.wraps(forward)  # the trainer goes by its signature
    def once_otherwise(self: Any, *arguments: Any, **named: Any) -> Any:
        found = forward(self, *arguments, **named)
        if self.training:
            calls.append(1)
        return spoilt(found) if self.training and len(calls) == step else found

    monkeypatch.setattr(BertForSequenceClassification, "forward", once_otherwise)


def test_a_loss_that_is_no_number_shows_its_batch(
    data: Path, base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_number(found: Any) -> Any:
        found.loss = found.loss * float("nan")
        return found

    spoil(monkeypatch, 20, no_number)
    assert cli.main(command(base_checkpoint)) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: training diverged: the loss of step 20 is nan; its batch: '")
    assert "' and 13 more, {'labels': [" in last and "smaller --learning-rate" in last
    assert not (data / "artifacts" / "tiny" / "checkpoint").exists()
    assert (data / "artifacts" / "tiny" / ".training" / "checkpoint-15").is_dir(), "the last good epoch stays, to go on from"
    monkeypatch.undo()
    monkeypatch.chdir(data)
    assert cli.main(command(base_checkpoint)) == 0
    assert "resuming after checkpoint-15" in capsys.readouterr().err


def with_figures(monkeypatch: pytest.MonkeyPatch, **figures: float) -> None:
    """Let the metric of the training return other figures too."""
    from export import metric
    from export.training import train

    monkeypatch.setattr(train, "compute", lambda *given: metric.compute(*given) | figures)


def test_a_metric_that_overflows_is_recorded_as_none(
    data: Path, base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_figures(monkeypatch, perplexity=float("inf"))
    assert cli.main(command(base_checkpoint, "--epochs", "1")) == 0
    assert re.search(r"^perplexity +none$", capsys.readouterr().err, re.MULTILINE)
    folder = data / "artifacts" / "tiny" / "checkpoint"
    figures = read_manifest(folder, CheckpointManifest).figures
    assert figures.validation["perplexity"] is None and figures.validation["accuracy"] is not None
    assert " none |" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_main_metric_that_is_no_number_is_one_line(
    data: Path, base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_figures(monkeypatch, accuracy=float("nan"))
    assert cli.main(command(base_checkpoint, "--epochs", "1")) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: training diverged: accuracy on the validation rows is nan (give a smaller --learning-rate)"
    assert not (data / "artifacts" / "tiny" / "checkpoint").exists()


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        (
            (),
            "(give --gradient-accumulation 2 (the same training, 8 rows at a time), or --gradient-checkpointing, or --adapter lora",
        ),
        (("--gradient-accumulation", "16", "--gradient-checkpointing", "--adapter", "lora"), "(give a --max-length under 32)"),
    ],
)
def test_memory_that_runs_out_is_answered_with_what_to_lower(
    data: Path,
    base_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    hint: str,
) -> None:
    spoil(monkeypatch, 2, lambda _: torch.empty(2**60))
    assert cli.main(command(base_checkpoint, *more)) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: out of memory: ") and hint in last
    assert not (data / "artifacts" / "tiny" / "checkpoint").exists()


def test_other_errors_of_torch_are_not_taken_for_those(data: Path, base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 2, lambda _: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        cli.main(command(base_checkpoint))


@pytest.mark.parametrize(
    "more",
    [
        ("--gradient-accumulation", "4"),
        ("--gradient-checkpointing",),
        ("--gradient-checkpointing", "--adapter", "lora", "--learning-rate", "2e-2"),
        ("--mixed-precision", "bf16"),
        ("--mixed-precision", "bf16", "--adapter", "lora", "--learning-rate", "2e-2"),
        ("--layer-decay", "0.8"),
        ("--label-smoothing", "0.1"),
    ],
    ids=" ".join,
)
@pytest.mark.long
def test_every_way_of_training_learns(data: Path, base_checkpoint: Path, more: tuple[str, ...]) -> None:
    assert cli.main(command(base_checkpoint, "--epochs", "8", "--early-stopping", "0", *more)) == 0
    figures = read_manifest(data / "artifacts" / "tiny" / "checkpoint", CheckpointManifest).figures
    assert figures.steps == 8 * 15
    assert "lora" in more or figures.validation["accuracy"] > 0.8, "the words give the label away"


@pytest.mark.long
def test_a_compiled_model_learns_the_same(data: Path, base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through all of torch.compile but the generation of machine code, which takes minutes for the many shapes of tiny batches."""
    from transformers import Seq2SeqTrainingArguments

    from export.training import trainer_arguments

    compiled: list[str] = []
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *given, **named: compiled.append(named["backend"]) or compile_(*given, **named))
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # the trainer's arguments set it, for all that comes after
    plain = functools.partial(Seq2SeqTrainingArguments, torch_compile_backend="aot_eager")
    figures = {}
    for name, more in (("whole", ()), ("compiled", ("--compile",))):
        with monkeypatch.context() as patch:
            if more:
                patch.setattr(trainer_arguments, "Seq2SeqTrainingArguments", plain)
            assert cli.main(command(base_checkpoint, "--epochs", "2", *more, name=name)) == 0
        figures[name] = read_manifest(data / "artifacts" / name / "checkpoint", CheckpointManifest).figures.validation
    assert compiled == ["aot_eager"]
    assert figures["compiled"] == pytest.approx(figures["whole"], abs=1e-2)
    torch._dynamo.reset()


@pytest.mark.parametrize("option", ["--learning-rate", "--weight-decay", "--warmup-ratio", "--layer-decay"])
def test_no_number_is_none_to_train_with(
    data: Path, base_checkpoint: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(base_checkpoint, option, "nan")) == 2
    assert "nan is not a finite number" in capsys.readouterr().err


def test_fp16_is_refused_on_a_cpu(data: Path, base_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(base_checkpoint, "--mixed-precision", "fp16")) == 1
    assert "error: fp16 training requires a GPU" in capsys.readouterr().err


def test_what_the_launcher_was_told_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from export.training import trainer_arguments

    assert trainer_arguments._mixed_precision("auto", on_gpu=False) == {"bf16": False}
    monkeypatch.setattr(trainer_arguments, "LAUNCHED_PRECISION", "bf16")
    assert trainer_arguments._mixed_precision("auto", on_gpu=False) == {"bf16": True}
    assert trainer_arguments._mixed_precision("no", on_gpu=False) == {}, "what is said to the command itself wins"


def test_layers_below_learn_more_slowly(make_checkpoint: Callable[[str], Path]) -> None:
    from transformers import AutoModelForSequenceClassification

    from export.training.trainer import _decay_by_layer

    model = AutoModelForSequenceClassification.from_pretrained(make_checkpoint("bert"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    _decay_by_layer(optimizer, model, 0.5)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    found = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert found["bert.embeddings.word_embeddings.weight"] == 0.125
    assert found["bert.encoder.layer.0.output.dense.weight"] == 0.25
    assert found["bert.encoder.layer.1.output.dense.weight"] == 0.5
    assert found["classifier.weight"] == found["bert.pooler.dense.weight"] == 1
    assert len(rates) == len(list(model.parameters())), "each is trained once"


@pytest.mark.slow
@pytest.mark.long
def test_a_run_that_is_killed_again_and_again_ends_as_if_never(data: Path, base_checkpoint: Path) -> None:
    """Killed outright, at whatever moment; what it is worth is what an undisturbed run is worth."""
    assert cli.main(command(base_checkpoint, name="undisturbed")) == 0
    moments = random.Random(0)
    arguments = [sys.executable, "-m", "export.cli", *command(base_checkpoint, name="killed")]
    ended = []
    for _ in range(2):
        process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
        scratch = data / "artifacts" / "killed" / ".training"
        while not scratch.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1.5))  # an undisturbed run takes about two seconds from here
        process.send_signal(signal.SIGKILL)
        ended.append(process.wait())
    assert -signal.SIGKILL in ended, "one was at work"
    assert subprocess.run(arguments, check=False, capture_output=True).returncode == 0
    accuracy, loss = (
        [
            read_manifest(data / "artifacts" / name / "checkpoint", CheckpointManifest).figures.validation[figure]
            for name in ("undisturbed", "killed")
        ]
        for figure in ("accuracy", "loss")
    )
    assert accuracy[0] == accuracy[1] and loss[0] == pytest.approx(loss[1], abs=1e-3)
    assert [path.name for path in (data / "artifacts" / "killed").iterdir()] == ["checkpoint"]
