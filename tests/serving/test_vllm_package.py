"""Packages for Triton's vLLM backend: the files that the backend reads, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from benchmarks.served_package import read_package
from export.cli import main
from serving.artifact import checksums
from serving.errors import ArtifactError
from serving.integrity import check_ensemble
from serving.inventory import take_inventory
from serving.layout import current_folder
from serving.manifests import RepositoryManifest
from serving.options import PackageOptions
from serving.packages import find_packages
from serving.removal import remove_model
from serving.repository import package
from serving.runtime.tasks import load_served
from serving.served_view import open_view
from serving.vllm_container import container_command
from serving.vllm_options import VllmOptions
from tests.helpers.manifests import SPEED
from tests.helpers.packages import generation_of, write_package
from tests.helpers.text_generation import TASK, write_bundle, write_checkpoint

ENGINE_ARGUMENTS = {
    "model", "tokenizer", "tokenizer_mode", "trust_remote_code", "dtype", "seed", "max_model_len", "quantization", "load_format",
    "download_dir", "kv_cache_dtype", "pipeline_parallel_size", "tensor_parallel_size", "block_size", "enable_prefix_caching",
    "swap_space", "cpu_offload_gb", "gpu_memory_utilization", "max_num_batched_tokens", "max_num_seqs", "max_logprobs",
    "disable_log_stats", "revision", "tokenizer_revision", "enforce_eager", "enable_lora", "generation_config", "model_impl",
}  # fmt: skip
"""Fields of ``EngineArgs`` in vllm/engine/arg_utils.py, as read in one copy of the file; another name is an error there."""
DTYPES = {"auto", "half", "float16", "bfloat16", "float", "float32"}
"""Values of its field ``dtype``."""


@pytest.fixture
def options(tmp_path: Path) -> PackageOptions:
    """Of a package that is asked for as ``export`` leaves its artifacts: the checkpoint beside the bundle."""
    checkpoint = write_checkpoint(tmp_path / "artifacts" / "lily" / "checkpoint")
    write_bundle(tmp_path / "artifacts" / "lily" / "bundle", checkpoint)
    return PackageOptions(name="lily", artifacts=tmp_path / "artifacts", repository=tmp_path / "models", engine="vllm")


def model_json(options: PackageOptions) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((current_folder(options.repository, options.name) / "model.json").read_bytes())
    return found


def test_the_files_are_those_of_the_backend(options: PackageOptions) -> None:
    folder = options.bundle_folder.parent / "checkpoint"
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "modeling_lily.py").touch()
    manifest = package(options).manifest
    config = text_format.Parse((options.repository / "lily" / "config.pbtxt").read_text(), ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("lily", "vllm", 0)
    assert config.model_transaction_policy.decoupled
    assert [(group.kind, group.count) for group in config.instance_group] == [(ModelInstanceGroup.KIND_MODEL, 1)]
    assert not config.input and not config.output  # the backend adds those of its release
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert load_served(parameters["task"], json.loads(parameters["settings"])) == TASK
    assert (parameters["model_sha256"], json.loads(parameters["description"])["device"]) == ("5a5a", "cuda")

    arguments = model_json(options)
    assert arguments == {
        "model": f"/models/lily/{manifest.generation}/checkpoint",
        "tokenizer": f"/models/lily/{manifest.generation}/checkpoint",
        "trust_remote_code": False,
        "dtype": "float16",
        "max_model_len": 64,
        "max_num_seqs": 256,
        "gpu_memory_utilization": 0.9,
        "tensor_parallel_size": 1,
    }
    assert arguments.keys() <= ENGINE_ARGUMENTS and arguments["dtype"] in DTYPES
    mounted = Path(arguments["model"].replace("/models", str(options.repository)))
    expected = checksums(folder)
    del expected["pytorch_model.bin"], expected["modeling_lily.py"]
    assert checksums(mounted) == expected
    assert (manifest.layout, manifest.precision, manifest.device, manifest.capacity) == ("vllm", "fp16", "gpu", 64)
    kept = {name: value for name, value in arguments.items() if name != "tokenizer"}
    assert manifest.engine_arguments == kept | {"model": "/models/lily"}
    assert manifest.probe.body == {"text_input": "Once upon a time", "temperature": 0, "max_tokens": 8}
    assert check_ensemble(options.repository, "lily").manifest == manifest


def test_the_options_become_arguments(options: PackageOptions) -> None:
    vllm = VllmOptions(mount_path="/srv/triton", gpu_memory_utilization=0.4, tensor_parallel_size=2)
    packaged = package(replace(options, vllm=vllm, capacity=100, max_batch_size=32, precision="fp32"))
    checkpoint = f"/srv/triton/lily/{packaged.manifest.generation}/checkpoint"
    assert model_json(options) == {
        "model": checkpoint,
        "tokenizer": checkpoint,
        "trust_remote_code": False,
        "dtype": "float32",
        "max_model_len": 100,
        "max_num_seqs": 32,
        "gpu_memory_utilization": 0.4,
        "tensor_parallel_size": 2,
    }


@pytest.mark.parametrize(
    ("stored", "asked", "dtype"),
    [
        ("bfloat16", "auto", "bfloat16"),
        ("float16", "auto", "float16"),
        ("float32", "auto", "float16"),
        ("float32", "bf16", "bfloat16"),
        ("bfloat16", "fp32", "float32"),
    ],
)
def test_the_precision_is_that_of_the_checkpoint_unless_asked(stored: str, asked: Any, dtype: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "hub", dtype=stored)
    bundle = write_bundle(tmp_path / "bundle", checkpoint)
    made = PackageOptions(
        name="x",
        bundle=bundle,
        repository=tmp_path / "models",
        engine="vllm",
        precision=asked,
        vllm=VllmOptions(checkpoint=checkpoint),
    )
    package(made)
    assert model_json(made)["dtype"] == dtype


def test_it_is_packaged_again_only_if_something_changed(options: PackageOptions) -> None:
    package(options)
    assert package(options).unchanged
    changed = replace(options, vllm=VllmOptions(gpu_memory_utilization=0.5))
    assert not package(changed).unchanged
    assert model_json(options)["gpu_memory_utilization"] == 0.5


def alter(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"others!")


def lose(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def test_the_checkpoint_of_the_quickstart_is_found(tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    checkpoint = write_checkpoint(artifacts / "quickstart" / "smollm2")
    original = SPEED | {"perplexity": 9.0, "rows": 4, "bytes": 7, "checkpoint": {"name": "quickstart:smollm2", "sha256": "5a5a"}}
    write_bundle(artifacts / "chat" / "bundle", checkpoint, name="chat", original=original)
    options = PackageOptions(name="chat", artifacts=artifacts, repository=tmp_path / "models", engine="vllm")
    package(options)
    copied = current_folder(options.repository, "chat") / "checkpoint" / "model.safetensors"
    assert copied.read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    shutil.rmtree(checkpoint)
    with pytest.raises(ArtifactError, match=r"there is no checkpoint at .*artifacts/quickstart/smollm2; .*from quickstart:smollm2"):
        package(replace(options, force=True))


def rename(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (alter, r"was not exported from .*checkpoint: model\.safetensors differs"),
        (lose, r"was not exported from .*checkpoint, which has no tokenizer\.json"),
        (rename, r"there is no checkpoint at .*checkpoint; .*bundle was exported from lily"),
    ],
)
def test_another_checkpoint_is_refused(options: PackageOptions, damage: Callable[[Path], None], said: str) -> None:
    damage(options.bundle_folder.parent / "checkpoint")
    with pytest.raises(ArtifactError, match=said) as caught:
        package(options)
    assert "--checkpoint" in caught.value.hint
    assert not list(options.repository.iterdir())
    assert not list(options.repository.parent.glob(".*"))


def test_a_bundle_without_recorded_weights_is_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    (checkpoint / "model.safetensors").unlink()
    bundle = write_bundle(tmp_path / "bundle", checkpoint)
    with pytest.raises(ArtifactError, match="does not record the weights that it was exported from"):
        package(PackageOptions(name="x", bundle=bundle, repository=tmp_path / "models", engine="vllm"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "int8"}, "has no int8 variant"),
        ({"precision": "int8_rowwise"}, "has no int8_rowwise variant"),
        ({"device": "cpu"}, "runs on a GPU, not on a CPU"),
        ({"capacity": 129}, "the model has 128 positions, not 129"),
        ({"engine": "onnxruntime", "precision": "bf16", "device": "cpu"}, "holds no bf16 variant"),
    ],
)
def test_what_vllm_does_not_have_is_refused(options: PackageOptions, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        package(replace(options, **changes))


def test_only_text_generation_is_packaged(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    settings = {"labels": ["bad", "good"], "function_to_apply": "softmax"}
    bundle = write_bundle(tmp_path / "bundle", checkpoint, task="text-classification", settings=settings)
    with pytest.raises(ArtifactError, match="lily is a model for text-classification: with vLLM, only text-generation is packaged"):
        package(PackageOptions(name="x", bundle=bundle, repository=tmp_path / "models", engine="vllm"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "vllm", "--threads", "2"], "--threads has no effect with --engine vllm: vLLM schedules all requests itself"),
        (["--engine", "vllm", "--queue-delay-us", "2"], "--queue-delay-us has no effect with --engine vllm"),
        (["--tensor-parallel-size", "2"], "--tensor-parallel-size has no effect without --engine vllm"),
        (["--checkpoint", "c"], "--checkpoint has no effect without --engine vllm"),
        (["--engine", "vllm", "--mount-path", "models"], "'models' is not an absolute path, such as /models"),
        (["--engine", "vllm", "--mount-path", "/a/../b"], "'/a/../b' is not an absolute path"),
        (["--engine", "vllm", "--gpu-memory-utilization", "1.5"], "1.5"),
        (["--engine", "vllm", "--tensor-parallel-size", "0"], "0"),
        (["--engine", "tensorrt"], "tensorrt"),
    ],
)
def test_wrong_usage(options: PackageOptions, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--name", "lily", "--artifacts", str(options.artifacts), "--repository", str(options.repository)]
    assert main(["package", *given, *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_the_command_says_how_to_serve_it(options: PackageOptions, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--name", "lily", "--artifacts", str(options.artifacts), "--repository", str(options.repository)]
    assert main(["package", *given, "--engine", "vllm", "--mount-path", "/"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{options.repository / 'lily'} is packaged: fp16, vLLM on a GPU, 256 sequences of 64 tokens\n"
    assert f"-v {options.repository}:/:ro nvcr.io/nvidia/tritonserver:YY.MM-vllm-python-py3 tritonserver --model-r" in printed.err
    assert model_json(options)["model"] == f"/lily/{generation_of(options.repository, 'lily')}/checkpoint"


def test_engines_replace_each_other(options: PackageOptions) -> None:
    repository = options.repository

    def packaged() -> RepositoryManifest:
        found = find_packages(repository)
        assert not found.damaged and not found.orphans
        return found.ensembles["lily"].manifest

    for layout in ("generation", "ensemble"):
        write_package(repository, "lily", layout=layout, task=TASK.name)
        assert packaged().layout == layout
        assert not package(replace(options, keep=1)).unchanged
        assert packaged().layout == "vllm"
        assert [entry.name for entry in repository.iterdir()] == ["lily"]
    write_package(repository, "lily", layout="ensemble", task=TASK.name)
    assert packaged().layout == "ensemble"
    package(options)
    remove_model(repository, "lily", servers=())
    assert not list(repository.iterdir())


def test_the_embedded_server_leaves_it_out(options: PackageOptions, caplog: pytest.LogCaptureFixture) -> None:
    manifest = package(options).manifest
    with pytest.raises(ArtifactError, match="lily is packaged for Triton's vLLM backend, which this server does not") as caught:
        open_view(options.repository).__enter__()
    assert caught.value.hint == f"serve it with the official image: {container_command(options.repository, manifest)}"
    write_package(options.repository, "other")
    with open_view(options.repository) as view:
        assert (list(view.left_out), (view.folder / "other").exists(), (view.folder / "lily").exists()) == (["lily"], True, False)
    assert "lily is left out: lily is packaged for Triton's vLLM backend" in caplog.text
    with pytest.raises(ArtifactError, match="vLLM backend"):
        open_view(options.repository, strict=True).__enter__()


def test_it_is_listed_and_not_measured(options: PackageOptions) -> None:
    package(options)
    (entry,) = take_inventory(options.repository, options.artifacts, ())
    assert (entry.state, entry.precision, entry.device) == ("ready", "fp16", "gpu")
    assert entry.notes == ("for the official Triton image with vLLM: tritonize serve leaves it out",)
    with pytest.raises(ArtifactError, match="lily is packaged for vLLM, which is not measured here"):
        read_package(options.repository, "lily")
