"""A machine with a GPU: models that generate are exported, packaged, tuned and measured on its CPU, and each stage says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.bundle import export
from export.cli import main
from export.export_options import ExportOptions
from export.generation import decoder_variants, decoding_speed
from serving.artifact import read_manifest
from serving.errors import ArtifactError
from serving.generation_device import unused_gpu
from serving.layout import current_folder
from serving.manifests import BundleManifest, RepositoryManifest
from tests.helpers.generating import LANGUAGES, write_checkpoint
from tests.helpers.reviews import review_rows, write_tsv

TASKS = {"gpt2": "text-generation", "t5": "summarization", "nllb": "translation"}
"""Tasks of the checkpoints."""
REASON = "device cpu: ONNX graphs of models that generate run on the CPU here"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["gpt2", *(pytest.param(name, marks=pytest.mark.long) for name in ("t5", "nllb"))])
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.machine.has_gpu", lambda: True)


@pytest.fixture(scope="module")
def arguments(name: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that packaging, tuning and benchmarks share; the bundle was exported with ``--device auto``."""
    folder = tmp_path_factory.mktemp(name)
    rows = write_tsv(folder / "rows.tsv", [(text,) * 4 for text, _ in review_rows(12, seed=7)], "text\tsummary\tsource\ttarget")
    languages = dict(zip(("source_language", "target_language"), LANGUAGES, strict=True)) if name == "nllb" else {}
    checkpoint = str(write_checkpoint(name, folder / "checkpoint"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.machine.has_gpu", lambda: True)
        patch.setattr(decoder_variants, "GREEDY_TOKENS", 4)
        patch.setattr(decoding_speed, "PASSES", 1)
        export(
            ExportOptions(
                artifacts=folder, name=name, task=TASKS[name], checkpoint=checkpoint, test=str(rows), precision=("fp32",),
                min_agreement=0.1, max_perplexity_increase=100, setting=languages,
            )
        )  # fmt: skip
    assert read_manifest(folder / name / "bundle", BundleManifest).device == "cpu"
    return ["--name", name, "--artifacts", str(folder), "--repository", str(folder / "repository"), "--checkpoint", checkpoint]


def expected(name: str) -> str:
    return f"{REASON}; for the GPU: tritonize package --name gpt2 --engine vllm" if name == "gpt2" else f"{REASON}\n"


@pytest.mark.parametrize("task", TASKS.values())
def test_the_reason_names_vllm_where_it_runs_the_task(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = "tritonize package --name tale --engine vllm"
    reason = unused_gpu("auto", name="tale", task=task)
    assert reason is not None and (command in reason) is (task == "text-generation")
    with pytest.raises(ArtifactError, match="tale generates on a CPU here") as refused:
        unused_gpu("gpu", name="tale", task=task)
    assert (command in str(refused.value.hint)) is (task == "text-generation")
    assert unused_gpu("cpu", name="tale", task=task) is None
    monkeypatch.setattr("serving.machine.has_gpu", lambda: False)
    assert unused_gpu("auto", name="tale", task=task) is None


def test_packaging_chooses_the_cpu_and_says_why(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    given = arguments[:-2]
    assert main(["package", *given]) == 0
    assert capsys.readouterr().err.count(expected(name)) == 1
    manifest = read_manifest(current_folder(Path(given[-1]), name), RepositoryManifest)
    assert (manifest.device, manifest.layout) == ("cpu", "generation")


def test_packaging_for_the_gpu_is_refused_with_a_way_out(
    name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["package", *arguments[:-2], "--device", "gpu"]) == 1
    said = capsys.readouterr().err
    assert f"{name} generates on a CPU here, not on a GPU" in said and "give --device cpu or auto; " in said
    assert ("--engine vllm" in said) is (name == "gpt2")
    assert (f"no engine here runs {TASKS[name]} on a GPU" in said) is (name != "gpt2")


def test_tuning_searches_on_the_cpu(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    given = [name, *arguments[2:-2], "--dry-run"]
    assert main(["tune", *given]) == 0
    shown = capsys.readouterr()
    assert shown.err.count(expected(name)) == 1 and "fp32" in shown.out and "GPU" not in shown.out
    assert main(["tune", *given, "--device", "gpu"]) == 1
    assert "generates on a CPU here" in capsys.readouterr().err


def test_benchmarks_measure_on_the_cpu(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.benchmark_options import BenchmarkOptions
    from benchmarks.generation.generation_inputs import read_generation_inputs
    from serving.bundle import load_bundle
    from serving.reporting import report_to_stderr

    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    options = BenchmarkOptions(
        name=name, artifacts=Path(given["--artifacts"]), checkpoint=given["--checkpoint"], new_tokens=8, rows=4, rounds=2
    )
    with report_to_stderr():
        read_generation_inputs(options, load_bundle(options.bundle_folder), None)
    assert capsys.readouterr().err.count(expected(name)) == 1
