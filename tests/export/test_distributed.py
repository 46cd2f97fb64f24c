"""The same command in several processes: the same steps, one writer, one voice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from export import cli
from export.training.hyperparameters import Hyperparameters
from serving.artifact import read_manifest
from serving.errors import DataError
from serving.manifests import CheckpointManifest, TrainingFigures
from tests.helpers.generating import write_checkpoint
from tests.helpers.reviews import review_rows, write_tsv

pytestmark = pytest.mark.long

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
"""With ``--cpu``, accelerate 1.15 starts one process, whatever ``--num_processes`` says."""
COMMANDS = """
import json, sys
from export.cli import main

for command in json.loads(sys.argv[1]):
    print(f"exit code {main(command)}")
"""


@pytest.fixture
def data(in_folder: Path) -> Path:
    """Folder with train.tsv, validation.tsv and test.tsv; also the working directory."""
    for seed, (split, count) in enumerate({"train": 250, "validation": 61, "test": 50}.items()):
        write_tsv(in_folder / f"{split}.tsv", review_rows(count, seed=30 + seed))
    return in_folder


def arguments(checkpoint: Path, name: str, *more: str) -> list[str]:
    splits = [part for split in ("train", "validation", "test") for part in (f"--{split}", f"{split}.tsv")]
    size = ["--epochs", "8", "--early-stopping", "0", "--batch-size", "16", "--max-length", "32", "--learning-rate", "5e-3"]
    size += ["--device", "cpu", "--keep-leaks"]
    return ["finetune", "--name", name, "--checkpoint", str(checkpoint), *splits, *size, *more]


def run(launcher: tuple[str, ...], *commands: list[str]) -> subprocess.CompletedProcess[str]:
    """Run commands one after another in two processes; each prints the exit code of each."""
    script = Path("commands.py")
    script.write_text(COMMANDS, encoding="utf-8")
    command = [sys.executable, "-m", *launcher, str(script), json.dumps(commands)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(Path.cwd())}  # where torchrun leaves folders
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environment)


def figures_of(data: Path, name: str) -> TrainingFigures:
    return read_manifest(data / "artifacts" / name / "checkpoint", CheckpointManifest).figures


@pytest.mark.parametrize(
    "launcher", [TORCHRUN, pytest.param(ACCELERATE, marks=pytest.mark.endurance)], ids=["torchrun", "accelerate"]
)
def test_two_processes_train_as_one_does(data: Path, base_checkpoint: Path, launcher: tuple[str, ...]) -> None:
    """What fails in all of them ends in all of them."""
    assert cli.main(arguments(base_checkpoint, "alone")) == 0
    odd = arguments(base_checkpoint, "odd", "--batch-size", "15")
    together = run(launcher, odd, arguments(base_checkpoint, "together", "--json"))
    assert together.returncode == 0, together.stderr
    assert sorted(re.findall("exit code .", together.stdout)) == ["exit code 0"] * 2 + ["exit code 1"] * 2
    assert "error: a step of 15 rows cannot be divided evenly over 2 processes × 1 parts each" in together.stderr
    assert not (data / "artifacts" / "odd" / "checkpoint").exists()
    one, two = figures_of(data, "alone"), figures_of(data, "together")
    assert one.steps == two.steps == 8 * 16
    assert two.rows == one.rows
    for split in ("validation", "test"):
        assert two.splits[split]["accuracy"] == pytest.approx(one.splits[split]["accuracy"], abs=0.08)
    assert together.stdout.count('"artifact"') == 1
    assert together.stderr.count(" train, 61 validation") == 2, "one line for each of the two runs"
    assert together.stderr.count("step 128 of 128") == 1
    assert together.stderr.splitlines()[-1] == "checkpoint: artifacts/together/checkpoint"
    assert not list((data / "artifacts" / "together").glob(".*")), "nothing is left over"


def test_two_processes_write_as_one_does(in_folder: Path) -> None:
    """Their answers are of unlike lengths, and one row is written twice: it is judged once."""
    checkpoint = write_checkpoint("t5", in_folder / "t5")
    for split, count in {"train": 64, "validation": 21, "test": 21}.items():
        rows = [(text, text) for text, _ in review_rows(count, seed=count + len(split))]
        write_tsv(in_folder / f"{split}.tsv", rows, "source\ttarget")
    more = ("--task", "translation", "--setting", "max_new_tokens=8", "--epochs", "1")
    assert cli.main(arguments(checkpoint, "alone", *more)) == 0
    together = run(TORCHRUN, arguments(checkpoint, "together", *more))
    assert together.returncode == 0, together.stderr
    one, two = figures_of(in_folder, "alone"), figures_of(in_folder, "together")
    assert one.rows == two.rows
    assert two.test == pytest.approx(one.test, abs=1e-2)


@pytest.mark.parametrize(("processes", "parts", "rows"), [(1, 1, 32), (2, 1, 16), (2, 4, 4), (32, 1, 1)])
def test_a_step_has_the_same_rows_however_it_is_shared_out(processes: int, parts: int, rows: int) -> None:
    assert Hyperparameters(batch_size=32, gradient_accumulation=parts).per_device_batch_size(processes) == rows


def test_steps_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(DataError) as raised:
        Hyperparameters(batch_size=32, gradient_accumulation=3).per_device_batch_size(2)
    assert raised.value.hint == "give a --batch-size that is a multiple of 6"
