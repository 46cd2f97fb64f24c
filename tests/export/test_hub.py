"""Sharing what was made, through a stand-in for the Hub on loopback: uploaded, and downloaded again."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from export import cli
from serving.artifact import read_manifest
from serving.manifests import BundleManifest, CheckpointManifest
from tests.helpers import hub
from tests.helpers.command_line import CommandLine, command_line
from tests.helpers.reviews import review_rows, write_tsv

Run = Callable[..., subprocess.CompletedProcess[str]]
TINY = ("--name", "tiny", "--epochs", "1", "--batch-size", "16", "--max-length", "32", "--learning-rate", "5e-3", "--device", "cpu")


@pytest.fixture(scope="module")
def listening() -> Iterator[tuple[hub.Hub, CommandLine]]:
    """A stand-in and a command line that takes it for the Hub."""
    with hub.serving() as serving:
        own = {"HF_ENDPOINT": serving.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        with command_line(**own) as commands:
            yield serving, commands


@pytest.fixture
def stand_in(listening: tuple[hub.Hub, CommandLine]) -> hub.Hub:
    """The stand-in, empty."""
    listening[0].clear()
    return listening[0]


@pytest.fixture
def run(listening: tuple[hub.Hub, CommandLine]) -> Run:
    """Run a command that talks to the stand-in."""
    return lambda *arguments, token=hub.TOKEN: listening[1].run(*arguments, HF_TOKEN=token)


@pytest.fixture
def data(in_folder: Path) -> Path:
    """Folder with train.tsv and test.tsv; also the working directory."""
    for seed, (split, count) in enumerate({"train": 160, "test": 80}.items()):
        write_tsv(in_folder / f"{split}.tsv", review_rows(count, seed=80 + seed))
    return in_folder


def finetune(checkpoint: Path, *more: str) -> list[str]:
    return ["finetune", "--checkpoint", str(checkpoint), "--train", "train.tsv", "--test", "test.tsv", *TINY, *more]


@pytest.mark.long
def test_checkpoint_and_bundle_go_to_the_hub_and_come_back(data: Path, base_checkpoint: Path, stand_in: hub.Hub, run: Run) -> None:
    done = run(*finetune(base_checkpoint, "--push-to-hub", "me/tiny", "--private"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == f"on the Hub: {stand_in.url}/me/tiny/commit/{hub.COMMIT}"
    artifact = data / "artifacts" / "tiny"
    files = stand_in.repositories["me/tiny"]
    manifest = read_manifest(artifact / "checkpoint", CheckpointManifest)
    assert set(files) == {*manifest.files, "manifest.json"}
    for name in files:
        assert files[name] == (artifact / "checkpoint" / name).read_bytes(), name
    assert stand_in.private == {"me/tiny"}
    assert files["README.md"].startswith(b"---\nlibrary_name: transformers\npipeline_tag: text-classification\nmetrics:\n")

    done = run("export", "--name", "tiny", "--device", "cpu", "--precision", "fp32", "--push-to-hub", "me/tiny")
    assert done.returncode == 0, done.stderr
    assert {name for name in files if name.startswith("onnx/") and name.endswith(".onnx")} == {"onnx/fp32/model.onnx"}
    assert stand_in.commits == ["Add the model", "Add onnx"]

    done = run("export", "--name", "again", "--checkpoint", "me/tiny", "--test", "test.tsv", "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    ours, theirs = (read_manifest(data / "artifacts" / name / "bundle", BundleManifest) for name in ("tiny", "again"))
    assert ours.original.metrics["accuracy"] == theirs.original.metrics["accuracy"], "what came back is what went"


@pytest.mark.long
def test_what_the_hub_refuses_stays_here(data: Path, base_checkpoint: Path, stand_in: hub.Hub, run: Run) -> None:
    done = run(*finetune(base_checkpoint, "--push-to-hub", "me/tiny"), token="wrong")  # noqa: S106 - of nothing
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: cannot upload artifacts/tiny/checkpoint to the Hub: 401 Client Error") and "HF_TOKEN" in last
    assert read_manifest(data / "artifacts" / "tiny" / "checkpoint", CheckpointManifest)
    done = run(*finetune(base_checkpoint, "--push-to-hub", "me/tiny"))
    assert done.returncode == 0 and "is up to date" in done.stderr, "given again it is only uploaded"


def test_a_name_that_is_none_is_told_at_once(data: Path, base_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a/b/c", "../x", "/x", "me/"):
        assert cli.main(finetune(base_checkpoint, "--push-to-hub", name)) == 2
        assert "is not the name of a repository on the Hub" in capsys.readouterr().err
    assert not Path("artifacts").exists()


def test_offline_is_told(data: Path, base_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(finetune(base_checkpoint, "--push-to-hub", "me/tiny")) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: cannot upload artifacts/tiny/checkpoint to the Hub: ") and "offline" in last


def test_the_card_says_what_a_colleague_needs(data: Path, base_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "train.tsv").write_text((data / "train.tsv").read_text() + (data / "test.tsv").read_text().partition("\n")[2])
    assert cli.main(finetune(base_checkpoint, "--adapter", "lora", "--json")) == 0
    output = capsys.readouterr()
    figures = json.loads(output.out)["figures"]
    card = (data / "artifacts" / "tiny" / "checkpoint" / "README.md").read_text()
    low, high = figures["interval"]
    assert low <= figures["test"]["accuracy"] <= high
    assert f"accuracy on the test rows is between {low:.4f} and {high:.4f} (95 %" in card
    assert re.search(r"\d+ of the test rows duplicate training rows .*; the duplicates were removed from", card)
    assert "Training rows by label: negative " in card
    assert "Adapter: lora, merged into the weights" in card
    assert 'pipeline("text-classification"' in card and "tritonize export --name tiny" in card
    assert "## Intended use and limits" in card
    assert "base_model" not in card, "a folder of somebody's disk says nothing to others"
    assert "test rows duplicate training rows" in output.err
