"""Packaging: what is written, and that nothing can catch it half-way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving.artifact import sha256
from serving.bundle import load_bundle
from serving.errors import ArtifactError
from serving.pbtxt import from_pbtxt
from serving.plan import make_plan
from serving.repository import PackageOptions, package

STEPS = ("tiny", "tiny_preprocess", "tiny_model", "tiny_postprocess")


def options(bundle: Path, repository: Path, **changes: object) -> PackageOptions:
    return PackageOptions(
        **{"bundle": bundle, "repository": repository, "name": "tiny", "precision": "fp32", "device": "cpu"} | changes
    )


def config(repository: Path, model: str) -> dict:
    return from_pbtxt((repository / model / "config.pbtxt").read_text(encoding="utf-8"))


def assert_whole(repository: Path) -> str:
    """All four models are there and belong together; returns which generation they are of."""
    homes = {(repository / model / "config.pbtxt").resolve().parent.parent for model in STEPS}
    assert len(homes) == 1
    home = homes.pop()
    manifest = json.loads((repository / "tiny" / "manifest.json").read_text(encoding="utf-8"))
    for name, digest in manifest["files"].items():
        assert sha256(home / name) == digest, name
    for model in STEPS:
        assert config(repository, model)["name"] == model
        assert (repository / model / "1").is_dir()
    return home.name


def test_configs_are_wired_from_the_graph(bundle: Path, pair_bundle: Path, tmp_path: Path) -> None:
    package(options(bundle, tmp_path, batching="ragged", max_batch_size=32))
    model, ensemble = config(tmp_path, "tiny_model"), config(tmp_path, "tiny")
    assert [tensor["name"] for tensor in model["input"]] == ["input_ids"]
    assert model["input"][0]["allow_ragged_batch"] is True
    assert model["batch_input"] == [
        {"kind": "BATCH_ITEM_SHAPE", "target_name": ["row_lengths"], "data_type": "TYPE_INT32", "source_input": ["input_ids"]}
    ]
    assert "dynamic_batching" in model
    assert [step["model_name"] for step in ensemble["ensemble_scheduling"]["step"]] == [
        "tiny_preprocess",
        "tiny_model",
        "tiny_postprocess",
    ]
    assert {config(tmp_path, name)["max_batch_size"] for name in STEPS} == {32}
    package(options(pair_bundle, tmp_path, batching="off"))
    model = config(tmp_path, "tiny_model")
    assert [tensor["name"] for tensor in model["input"]] == ["input_ids", "token_type_ids"]
    assert "dynamic_batching" not in model and "batch_input" not in model
    assert [tensor["name"] for tensor in config(tmp_path, "tiny")["input"]] == ["TEXT", "TEXT_PAIR"]
    assert all("model_warmup" in config(tmp_path, name) for name in STEPS[1:])


def test_unchanged_work_is_not_done_again(bundle: Path, tmp_path: Path) -> None:
    assert not package(options(bundle, tmp_path)).unchanged
    generation = assert_whole(tmp_path)
    assert package(options(bundle, tmp_path)).unchanged
    assert assert_whole(tmp_path) == generation
    assert not package(options(bundle, tmp_path, threads=2, instances=1)).unchanged
    other = assert_whole(tmp_path)
    assert other != generation
    (tmp_path / "tiny_model" / "1" / "model.onnx").write_bytes(b"damaged")
    assert not package(options(bundle, tmp_path, threads=2, instances=1)).unchanged
    assert assert_whole(tmp_path) != other
    assert len(list((tmp_path / "tiny_model" / "generations").iterdir())) == 1


def test_killed_at_any_moment_the_old_repository_stands(bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    package(options(bundle, repository))
    script = (
        "import sys; from pathlib import Path; from serving.repository import *\n"
        "import serving.repository, onnx, serving.bundle, serving.plan\n"
        "print('go', flush=True); threads = 1\n"
        "while True:\n"
        "    threads = 3 - threads\n"
        "    package(PackageOptions(bundle=Path(sys.argv[1]), repository=Path(sys.argv[2]), name='tiny', precision='fp32',\n"
        "                           device='cpu', instances=1, threads=threads, force=True))\n"
    )
    chance, generations = random.Random(5), set()
    for _ in range(25):
        process = subprocess.Popen([sys.executable, "-c", script, str(bundle), str(repository)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        time.sleep(chance.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        generations.add(assert_whole(repository))
        assert sorted(entry.name for entry in repository.iterdir()) == sorted(STEPS)  # nothing that Triton would take for a model
    assert len(generations) > 1  # some were killed after the switch, some before
    package(options(bundle, repository, force=True))
    assert len(list((repository / "tiny_model" / "generations").iterdir())) == 1  # what the killed ones left is gone
    assert [entry.name for entry in tmp_path.iterdir()] == ["repository"]


def test_every_system_call_of_a_first_packaging_may_be_the_last(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops before the nth rename or symlink, for every n: whatever stands then, no ensemble is without its steps."""
    calls = ("rename", "symlink_to")

    class StoppedError(BaseException):
        pass

    def stop_at(limit: int) -> None:
        left = [limit]
        for name in calls:
            original = getattr(Path, name)

            def stopping(self: Path, *arguments: object, original: object = original) -> object:
                left[0] -= 1
                if left[0] < 0:
                    raise StoppedError
                return original(self, *arguments)  # type: ignore[operator]

            monkeypatch.setattr(Path, name, stopping)

    for limit in range(100):
        repository = tmp_path / str(limit) / "repository"
        repository.parent.mkdir()
        stop_at(limit)
        try:
            package(options(bundle, repository))
        except StoppedError:
            monkeypatch.undo()
            if (repository / "tiny").exists():
                assert_whole(repository)
            package(options(bundle, repository))
            assert_whole(repository)
        else:
            monkeypatch.undo()
            break
    assert limit >= 5


@pytest.mark.parametrize("name", STEPS)
def test_somebody_elses_model_is_not_overwritten(bundle: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").write_text("work")
    with pytest.raises(ArtifactError, match="not packaged by tritonize"):
        package(options(bundle, tmp_path))
    assert (tmp_path / name / "precious").read_text() == "work"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_works_from_another_place_after_a_copy(bundle: Path, tmp_path: Path) -> None:
    package(options(bundle, tmp_path / "here"))
    subprocess.run(["cp", "-a", tmp_path / "here", tmp_path / "there"], check=True)
    (tmp_path / "here").rename(tmp_path / "gone")
    assert_whole(tmp_path / "there")
    assert not any(link.readlink().is_absolute() for link in (tmp_path / "there").rglob("*") if link.is_symlink())


@pytest.mark.parametrize(
    ("asked", "batching", "instances"),
    [
        ({"precision": "int8"}, "off", None),
        ({"precision": "int8", "batching": "ragged"}, "ragged", 1),
        ({"precision": "fp32", "batching": "ragged"}, "ragged", 1),
    ],
)
def test_plan_on_a_cpu(bundle: Path, asked: dict, batching: str, instances: int | None) -> None:
    cores = len(os.sched_getaffinity(0))
    plan = make_plan(
        load_bundle(bundle),
        **{"precision": "auto", "device": "cpu", "batching": "auto", "instances": None, "threads": None, "max_batch_size": 64}
        | asked,
    )
    assert plan.batching == batching
    assert plan.instances == (instances or cores)
    assert plan.instances * plan.threads <= cores


def test_plan_takes_the_fastest_on_a_cpu_and_fp16_on_a_gpu(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    free = {"precision": "auto", "batching": "auto", "instances": None, "threads": None, "max_batch_size": 64}
    fastest = min(loaded.variants.values(), key=lambda variant: variant.figures["latency_ms"])
    assert make_plan(loaded, device="cpu", **free).precision == fastest.precision
    gpu = make_plan(loaded, device="gpu", **free)
    assert (gpu.precision, gpu.batching, gpu.instances) == ("fp16", "ragged", 1)
    assert set(gpu.reasons) >= {"precision", "batching"}


def test_a_bundle_that_lacks_a_file_or_is_none(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no bundle at"):
        load_bundle(tmp_path)
    subprocess.run(["cp", "-r", bundle, tmp_path / "copy"], check=True)
    (tmp_path / "copy" / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"lacks tokenizer\.json"):
        load_bundle(tmp_path / "copy")
    with pytest.raises(ArtifactError, match="not readable as JSON"):
        (tmp_path / "copy" / "manifest.json").write_text("{")
        load_bundle(tmp_path / "copy")
