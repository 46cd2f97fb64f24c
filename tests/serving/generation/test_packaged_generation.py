"""Checkpoints that generate, exported, packaged and served: answers as transformers.pipeline gives them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc, http
from tritonclient.utils import InferenceServerException

from export.bundle import export
from export.cli import main
from export.export_options import ExportOptions
from serving.artifact import read_manifest
from serving.client import TritonPipeline
from serving.errors import ArtifactError, ExportError, InvalidArgumentError, ServerError, TruncationWarning
from serving.layout import current_folder
from serving.manifests import BundleManifest, GenerationVariantFigures, RepositoryManifest
from serving.model_control import ModelControl
from serving.options import PackageOptions, ServeOptions
from serving.probe import probes_of
from serving.repository import package
from serving.triton_address import fetch
from tests.helpers.generating import LANGUAGES, write_checkpoint
from tests.helpers.reviews import review_rows, write_tsv
from tests.helpers.servers import running, serve_options
from tests.helpers.vllm_requests import FRONT_END, SAMPLE_CLIENT, ask_grpc, ask_http, front_end_inputs, sample_client_inputs

SMALL = {"gpt2": "text-generation", "t5": "summarization", "nllb": "translation", "marian": "translation", "m2m100": "translation"}
"""Tasks of the checkpoints."""
BOTH = {"nllb": LANGUAGES, "m2m100": ("en", "de")}
"""Languages of those that have several."""
TEXTS = ["a warm funny film", "dull", "a delight with a plot"]
WAYS: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": 12, "num_beams": 1, "do_sample": False},
    {"max_new_tokens": 9, "num_beams": 3, "do_sample": False, "length_penalty": 0.5, "no_repeat_ngram_size": 2},
    {"max_new_tokens": 9, "num_beams": 4, "do_sample": False, "num_return_sequences": 2, "early_stopping": True},
    {"max_new_tokens": 10, "num_beams": 1, "do_sample": False, "repetition_penalty": 1.5, "min_new_tokens": 4},
    {"max_new_tokens": 10, "num_beams": 1, "do_sample": False}
    | dict.fromkeys(("eos_token_id", "forced_eos_token_id", "stop_strings")),
    {"max_new_tokens": None, "num_beams": 1, "do_sample": False, "top_k": None},
)
"""Options that generate."""


UNUSUAL = {
    "num_beams": 3,
    "do_sample": True,
    "typical_p": 0.9,
    "max_new_tokens": 20,
    "max_time": 600.0,
    "num_assistant_tokens": 5,
    "remove_invalid_values": True,
    "repetition_penalty": 1.3,
    "eos_token_id": 0,
}
"""``generation_config.json`` of a checkpoint that cannot be served as it generates."""
CHOSEN = {"do_sample": False, "typical_p": 1.0, "max_new_tokens": 7, "eos_token_id": [0, 5]}
"""Settings with which it can."""


@dataclass(frozen=True)
class Packaged:
    """Served packages, and the checkpoints they were made from."""

    options: ServeOptions
    artifacts: Path
    checkpoints: dict[str, Path]

    def client(self, name: str, protocol: str = "grpc") -> TritonPipeline:
        port = self.options.grpc_port if protocol == "grpc" else self.options.http_port
        return TritonPipeline(name, url=f"127.0.0.1:{port}", protocol=protocol)

    def manifest(self, name: str) -> RepositoryManifest:
        return read_manifest(current_folder(self.options.repository, name), RepositoryManifest)


@pytest.fixture(scope="module")
def generators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Packaged]:
    """``gpt2`` and ``gpt2-int8``, ``unusual`` with settings of its own, and the others, on a server with its front."""
    folder = tmp_path_factory.mktemp("packaged")
    rows = folder / "rows.tsv"
    write_tsv(rows, [(text, text, text, text) for text, _ in review_rows(24, seed=7)], "text\tsummary\tsource\ttarget")
    checkpoints = {name: write_checkpoint(name, folder / name) for name in SMALL}
    for name in SMALL:
        languages = dict(zip(("source_language", "target_language"), BOTH.get(name, ()), strict=False))
        options = export_options(folder, name, checkpoints[name], rows, setting=languages)
        export(options)
    repository = folder / "repository"
    for name in SMALL:
        package(PackageOptions(artifacts=folder, repository=repository, name=name, precision="fp32", device="cpu"))
    checkpoints["unusual"] = write_checkpoint("gpt2", folder / "unusual")
    (folder / "unusual" / "generation_config.json").write_text(json.dumps(UNUSUAL), encoding="utf-8")
    assert main(export_unusual(folder, *(f"{name}={json.dumps(value)}" for name, value in CHOSEN.items()))) == 0
    package(PackageOptions(artifacts=folder, repository=repository, name="unusual", precision="fp32", device="cpu"))
    bundle = folder / "gpt2" / "bundle"
    package(PackageOptions(bundle=bundle, repository=repository, name="gpt2-int8", precision="int8", device="cpu", capacity=32))
    with running(serve_options(repository)) as served:
        yield Packaged(served, folder, checkpoints)


def export_options(artifacts: Path, name: str, checkpoint: Path, rows: Path, **more: Any) -> ExportOptions:
    precision = ("fp32", "int8") if name == "gpt2" else ("fp32",)
    return ExportOptions(
        artifacts=artifacts, name=name, task=SMALL[name], checkpoint=str(checkpoint), test=str(rows), precision=precision,
        min_agreement=0.1, max_perplexity_increase=100, device="cpu", **more,
    )  # fmt: skip


def export_unusual(artifacts: Path, *settings: str) -> list[str]:
    where = ("--artifacts", str(artifacts), "--checkpoint", str(artifacts / "unusual"), "--test", str(artifacts / "rows.tsv"))
    given = [word for setting in settings for word in ("--setting", setting)]
    return ["export", "--name", "unusual", "--task", "text-generation", *where, "--precision", "fp32", "--device", "cpu", *given]


def library(generators: Packaged, name: str) -> Any:
    import transformers

    languages = dict(zip(("src_lang", "tgt_lang"), BOTH.get(name, ()), strict=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "translation" is taken for English to German
        return transformers.pipeline(
            SMALL.get(name, "text-generation"), model=str(generators.checkpoints[name]), device=-1, **languages
        )


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", SMALL)
def test_answers_are_those_of_the_pipeline(generators: Packaged, name: str, protocol: str) -> None:
    pipe = library(generators, name)
    with generators.client(name, protocol) as client:
        assert client.task == SMALL[name]
        for way in WAYS:
            assert client(TEXTS, **way) == pipe(TEXTS, **way), way
            assert client(TEXTS[0], **way) == pipe(TEXTS[0], **way), way


@pytest.mark.parametrize("stream", [False, True])
def test_a_package_behind_the_front_answers_clients_of_the_vllm_backend(generators: Packaged, *, stream: bool) -> None:
    options, count = generators.options, len(library(generators, "gpt2").tokenizer(TEXTS[0]).input_ids)
    for kind in FRONT_END:
        inputs = front_end_inputs(kind, TEXTS[0], stream=stream)
        for answer in ask_grpc(options.grpc_url, "gpt2", inputs):
            assert answer["num_input_tokens"] == [count] and len(answer["num_output_tokens"]) == 1
        for answer in ask_http(f"127.0.0.1:{options.http_port}", "gpt2", inputs):
            assert answer["num_input_tokens"] == count
        with pytest.raises(InferenceServerException, match="return_cumulative_logprob cannot be true"):
            ask_grpc(options.grpc_url, "gpt2", inputs | {"return_cumulative_logprob": True})
    sample = sample_client_inputs(TEXTS[0], stream=stream)
    assert ask_grpc(options.grpc_url, "gpt2", sample, parameters=SAMPLE_CLIENT)
    assert "text_output" in ask_http(f"127.0.0.1:{options.http_port}", "gpt2", sample, parameters=SAMPLE_CLIENT)[0]


def test_a_request_has_several_rows_and_marks_those_that_are_truncated(generators: Packaged) -> None:
    texts, long = TEXTS[:2], " ".join(TEXTS * 8)
    with generators.client("nllb") as client:
        alone = client(texts, max_new_tokens=6)
        with pytest.raises(InvalidArgumentError, match="longer than the 47 tokens"):
            client([*texts, long], max_new_tokens=6, batch_size=3)
        with pytest.warns(TruncationWarning, match="1 row was truncated"):
            together = client([*texts, long], max_new_tokens=6, batch_size=3, truncation=True)
    assert together[:2] == alone


def test_settings_of_export_are_the_defaults_of_generation(generators: Packaged) -> None:
    from transformers import GenerationConfig

    pipe, config = library(generators, "unusual"), GenerationConfig(num_beams=2, max_new_tokens=5)
    with generators.client("unusual") as client:
        assert client(TEXTS) == pipe(TEXTS, **CHOSEN)
        assert client(TEXTS, num_beams=1, max_new_tokens=9) == pipe(TEXTS, **CHOSEN | {"num_beams": 1, "max_new_tokens": 9})
        expected = pipe(TEXTS, generation_config=config, do_sample=False, typical_p=1.0, eos_token_id=[0, 5])
        assert client(TEXTS, generation_config=config, max_new_tokens=5) == expected


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        (("typical_p=1.0",), "do_sample: give do_sample=false, or num_beams=1 to sample", "such as --setting do_sample=false"),
        (("do_sample=false",), "option typical_p is not supported: only 1.0 is accepted", "such as --setting do_sample=false"),
        (
            ("num_beams=1", "typical_p=1.0", "eos_token_id=[9999]"),
            "eos_token_id names token 9999",
            "(change --setting eos_token_id)",
        ),
    ],
)
def test_defaults_that_are_not_supported_are_named_with_a_command(
    generators: Packaged, capsys: pytest.CaptureFixture[str], settings: tuple[str, ...], message: str, hint: str
) -> None:
    assert main([*export_unusual(generators.artifacts, *settings), "--force"]) == 1
    told = capsys.readouterr().err
    assert message in told and hint in told
    assert (generators.artifacts / "unusual" / "bundle" / "manifest.json").is_file(), "the bundle that was there stays"


@pytest.mark.parametrize("name", ["t5", "nllb", "marian"])
def test_configs_and_tokens_of_encoder_decoders_are_those_of_the_pipeline(generators: Packaged, name: str) -> None:
    from transformers import GenerationConfig

    pipe = library(generators, name)
    start = pipe.model.generation_config.decoder_start_token_id
    with generators.client(name) as client:
        for config in ({}, {"max_new_tokens": 8}, {"num_beams": 3, "max_length": 12, "length_penalty": 0.5}):
            given = {"generation_config": GenerationConfig(**config)}
            assert client(TEXTS, **given) == pipe(TEXTS, **given), config
        for way in ({"decoder_start_token_id": start}, {"pad_token_id": pipe.tokenizer.pad_token_id}, {"max_time": 0}):
            asked = {"max_new_tokens": 8, **way}
            assert client(TEXTS, **asked) == pipe(TEXTS, **asked), way


def test_languages_come_with_the_request(generators: Packaged) -> None:
    pipe, (source, target) = library(generators, "nllb"), LANGUAGES
    with generators.client("nllb") as client:
        way = {"max_new_tokens": 8, "src_lang": target, "tgt_lang": source}
        assert client(TEXTS, **way) == pipe(TEXTS, **way)
        for ask in (pipe, client):
            with pytest.raises(TypeError, match="forced_bos_token_id"):
                ask(TEXTS, forced_bos_token_id=5, **way)
        with pytest.raises(ValueError, match="tgt_lang must be one of deu_Latn, eng_Latn, not 'fra_Latn'"):
            client(TEXTS, tgt_lang="fra_Latn")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_new_tokens": 4000}, "this model holds"),
        ({"num_beams": 0}, "option num_beams must be 1 or more"),
        ({"temperatur": 1}, "option temperatur is unknown"),
        ({"num_beams": 2, "do_sample": True}, "not supported with do_sample"),
        ({"eos_token_id": "[1"}, "eos_token_id must be a list in JSON"),
    ],
)
def test_a_bad_option_is_named(generators: Packaged, parameters: dict[str, Any], message: str) -> None:
    tensor = http.InferInput("TEXT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([["a film"]], np.object_))
    with http.InferenceServerClient(f"127.0.0.1:{generators.options.http_port}") as client:
        with pytest.raises(InferenceServerException, match=message) as raised:
            client.infer("t5", [tensor], parameters=parameters)
        assert raised.value.status() == "400"
        assert client.infer("t5", [tensor], parameters={"max_new_tokens": 3}).as_numpy("GENERATED").shape == (1, 1)


def test_a_request_whose_time_is_over_is_no_bad_request(generators: Packaged) -> None:
    tensor = http.InferInput("TEXT", [2, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([["a film"], ["dull"]], np.object_))
    late = pytest.raises(InferenceServerException, match="the time that this request allows is over")
    with http.InferenceServerClient(f"127.0.0.1:{generators.options.http_port}") as client, late as raised:
        client.infer("t5", [tensor], timeout=1)
    assert raised.value.status() == "504"
    tensor = grpc.InferInput("TEXT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([["a film"]], np.object_))
    late = pytest.raises(InferenceServerException, match="the time that this request allows is over")
    with grpc.InferenceServerClient(f"127.0.0.1:{generators.options.grpc_port}") as client, late as raised:
        client.infer("t5", [tensor], timeout=1)
    assert raised.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_text_that_is_not_utf8_is_refused_and_its_row_is_named(generators: Packaged) -> None:
    tensor = http.InferInput("TEXT", [2, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"fine"], [b"\xff"]], np.object_))
    with (
        http.InferenceServerClient(f"127.0.0.1:{generators.options.http_port}") as client,
        pytest.raises(InferenceServerException, match="TEXT, row 1: byte 0 is not valid UTF-8"),
    ):
        client.infer("t5", [tensor])


def test_the_bundle_says_how_good_each_variant_is(generators: Packaged) -> None:
    for name, metric in (("gpt2", "perplexity"), ("t5", "rouge_l"), ("nllb", "chrf")):
        manifest = read_manifest(generators.artifacts / name / "bundle", BundleManifest)
        figures = manifest.precisions["fp32"].figures
        assert isinstance(figures, GenerationVariantFigures)
        assert manifest.main_metric == metric
        assert metric in figures.metrics
        assert (figures.next_token_agreement, figures.equal_answers) == (1, 1)
        assert figures.throughput.one_by_one > 0
        assert {gate.name for gate in manifest.precisions["fp32"].gates} >= {"greedy_answers"}


def test_the_package_says_what_the_cache_takes(generators: Packaged) -> None:
    manifest = generators.manifest("gpt2-int8")
    figures = read_manifest(generators.artifacts / "gpt2" / "bundle", BundleManifest).precisions["int8"].figures
    assert isinstance(figures, GenerationVariantFigures)
    assert figures.cache_bytes == 2 * 2 * 32 * 4  # layers, keys and values, numbers of all heads, bytes
    assert (manifest.layout, manifest.capacity, manifest.max_batch_size) == ("generation", 32, 16)
    assert manifest.reasons["capacity"].startswith("32 tokens of prompt and answer, as asked: the cache of 16 sequences takes ")
    assert manifest.answers


def test_what_is_packaged_already_stays(generators: Packaged) -> None:
    options = PackageOptions(artifacts=generators.artifacts, repository=generators.options.repository, name="t5", precision="fp32")
    assert package(options).unchanged


def test_more_tokens_than_positions_are_refused(generators: Packaged, tmp_path: Path) -> None:
    options = PackageOptions(artifacts=generators.artifacts, repository=tmp_path, name="gpt2", capacity=49, device="cpu")
    with pytest.raises(ArtifactError, match="the model has 48 positions, not 49"):
        package(options)
    assert not list(tmp_path.iterdir())


def test_what_is_exported_already_stays(generators: Packaged) -> None:
    rows = generators.artifacts / "rows.tsv"
    before = read_manifest(generators.artifacts / "t5" / "bundle", BundleManifest)
    assert export(export_options(generators.artifacts, "t5", generators.checkpoints["t5"], rows)) == before


def test_a_precision_that_is_not_exported_is_named(generators: Packaged) -> None:
    options = export_options(generators.artifacts, "t5", generators.checkpoints["t5"], generators.artifacts / "rows.tsv")
    with pytest.raises(ExportError, match="models of summarization are not exported in fp16"):
        export(replace(options, precision=("fp16",)))


def test_a_request_without_rows_is_refused(generators: Packaged) -> None:
    tensor = http.InferInput("TEXT", [0, 1], "BYTES")
    tensor.set_data_from_numpy(np.empty((0, 1), np.object_))
    with (
        http.InferenceServerClient(f"127.0.0.1:{generators.options.http_port}", network_timeout=20) as client,
        pytest.raises(InferenceServerException),
    ):
        client.infer("t5", [tensor])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"text_input": 3}, "it must be a text"),
        ({"text_input": None}, "it must be a text"),
        ({"text_input": [3]}, "it must be a text"),
        ({"text_input": "a", "sampling_parameters": {"max_new_tokens": 4}}, "it must be JSON in a text"),
        ({"text_input": "a", "stream": "yes"}, "it must be true or false"),
        ({"text_input": "a", "id": 7}, "id must be a string"),
        ({"text_input": "a", "stream": True}, "send a request with stream to generate_stream"),
    ],
)
def test_a_body_of_generate_that_triton_would_misread_is_refused(generators: Packaged, body: dict[str, Any], message: str) -> None:
    base = f"http://127.0.0.1:{generators.options.http_port}"
    status, content = fetch(base, "/v2/models/gpt2/generate", json.dumps(body).encode(), timeout=20)
    assert (status, message in content.decode()) == (400, True), content


def test_an_answer_that_needs_more_sequences_than_there_are_is_refused(generators: Packaged, tmp_path: Path) -> None:
    options = PackageOptions(artifacts=generators.artifacts, repository=tmp_path, name="t5", max_batch_size=3, device="cpu")
    with pytest.raises(ArtifactError, match="an answer of t5 needs 4 sequences, not 3"):
        package(options)


def test_end_tokens_are_few_where_there_are_beams(generators: Packaged) -> None:
    with (
        generators.client("gpt2") as client,
        pytest.raises(ValueError, match="num_beams of 2, at most 255 tokens may end"),
    ):
        client("a film", num_beams=2, do_sample=False, eos_token_id=[0, *range(1, 257)])


@pytest.mark.parametrize("name", ["gpt2", "gpt2-int8", "t5"])
def test_the_check_of_a_release_has_the_recorded_answers(generators: Packaged, name: str) -> None:
    probes = probes_of(generators.manifest(name), name, all_texts=True)
    with ModelControl(f"127.0.0.1:{generators.options.grpc_port}") as control:
        for probe in probes:
            control.check(probe, seconds=60)
    (right,) = probes[0].expected
    other = "other" if isinstance(right.data[0], str) else right.data[0] + 1
    wrong = right.model_copy(update={"data": (other, *right.data[1:])})
    with ModelControl(f"127.0.0.1:{generators.options.grpc_port}") as control, pytest.raises(ServerError):
        control.check(replace(probes[0], expected=(wrong,)), seconds=60)


@pytest.mark.parametrize("name", ["gpt2", pytest.param("t5", marks=pytest.mark.endurance)])
@pytest.mark.long
def test_a_new_generation_is_released_and_taken_back(generators: Packaged, name: str) -> None:
    where = "--http-port", str(generators.options.http_port), "--repository", str(generators.options.repository)

    def run(command: str, *given: str) -> None:
        assert main([command, name, *given, *where]) == 0, command

    with generators.client(name) as client:
        before, old = client(TEXTS, **WAYS[0]), generators.manifest(name).generation
        options = {"artifacts": generators.artifacts, "repository": generators.options.repository, "name": name}
        new = package(PackageOptions(**options, precision="fp32", device="cpu", force=True, current=False)).manifest.generation
        run("load", new)
        with generators.client(f"{name}.{new}") as beside:
            assert beside(TEXTS, **WAYS[0]) == before
        run("unload", new)
        for command, generation in (("promote", new), ("rollback", old)):
            run(command)
            assert generators.manifest(name).generation == generation
            assert client(TEXTS, **WAYS[0]) == before
        run("unload")
        run("load")
        assert client(TEXTS, **WAYS[0]) == before


@pytest.mark.long
def test_fp16_of_a_decoder_is_served_on_the_cpu_if_it_is_asked_for(generators: Packaged, tmp_path: Path) -> None:
    rows = write_tsv(tmp_path / "rows.tsv", review_rows(12, seed=7))
    options = export_options(tmp_path, "gpt2", generators.checkpoints["gpt2"], rows)
    export(replace(options, precision=("fp32", "fp16")))
    packages = PackageOptions(artifacts=tmp_path, repository=tmp_path / "repository", name="gpt2", precision="fp16", device="auto")
    assert package(packages).manifest.answers, "the server must give what the engine gave"
    with running(serve_options(packages.repository)) as served:
        packaged = Packaged(served, tmp_path, generators.checkpoints)
        assert (packaged.manifest("gpt2").precision, packaged.manifest("gpt2").device) == ("fp16", "cpu")
        with packaged.client("gpt2") as client:
            (answer,) = client(TEXTS[0], **WAYS[0])
    assert answer["generated_text"].startswith(TEXTS[0]) and answer["generated_text"] != TEXTS[0]
