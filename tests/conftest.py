"""Fixtures that tests of several packages share: tiny checkpoints made offline, their rows and bundles, one running server."""

from __future__ import annotations

import csv
import fcntl
import gc
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.helpers.checkpoints import TOKENIZERS, make_config, make_tokenizer, randomize, train_bert
from tests.helpers.exporting import export_bundle
from tests.helpers.reviews import SAMPLE, review_rows, write_tsv
from tests.helpers.servers import Server, running_server, serve_options, wait_stopped
from tests.helpers.shared import SST2
from tests.helpers.surroundings import leave_surroundings, usual_ports_taken

TRAINED_OR_EXPORTED = {"base_checkpoint", "review_file", "bundle", "in_folder", "trained", "ask"}
"""Tests that use one of these fixtures train, export or package a model, or wait for one: they are marked slow."""
TOGETHER = {
    "shared server": {
        "tests/benchmarks/test_benchmark.py",
        "tests/benchmarks/test_interrupt.py",
        "tests/serving/front/test_failed_requests.py",
        "tests/serving/front/test_front.py",
        "tests/serving/front/test_front_options.py",
        "tests/serving/test_client.py",
        "tests/serving/test_client_alone.py",
        "tests/serving/test_client_copies.py",
        "tests/serving/test_evaluator.py",
        "tests/serving/test_forks.py",
        "tests/serving/test_fused.py",
        "tests/serving/test_monitoring.py",
        "tests/serving/test_pipeline_attributes.py",
        "tests/serving/test_predict.py",
        "tests/serving/test_server.py",
    },
    "killed keepers": {"tests/benchmarks/test_tune.py", "tests/serving/test_restarts.py", "tests/serving/test_supervisor.py"},
    "trained to answer": {"tests/export/tasks/test_question_answering.py", "tests/serving/test_question_answering.py"},
}
"""Modules that run in one process, one after another: they share a server or a model, or look for what killed keepers left."""
Once = Callable[[str, Callable[[Path], Path]], Path]

# a run in the background of a shell script inherits that Ctrl-C is ignored; the tests press it
signal.signal(signal.SIGINT, signal.default_int_handler)

# before any library reads it
_FOLDER = leave_surroundings()


def group_of(nodeid: str) -> str:
    """The module of a test, or the group its module belongs to."""
    module = nodeid.partition("::")[0]
    return next((group for group, modules in TOGETHER.items() if module in modules), module)


class GroupScheduling(LoadScopeScheduling):
    """A pytest-xdist worker runs all tests of a group."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    """Take this scheduler, whatever ``--dist`` says."""
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow, and let groups that take long begin first."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if "packaged" in fixtures:
            item.add_marker(pytest.mark.server)
            if group_of(item.nodeid) != "shared server":
                raise pytest.UsageError(f"{item.nodeid} uses the shared server: add its module to TOGETHER")
        if fixtures & TRAINED_OR_EXPORTED:
            item.add_marker(pytest.mark.slow)
        groups.setdefault(group_of(item.nodeid), []).append(item)

    def place(group: str) -> int:
        slow = any(item.get_closest_marker(name) for item in groups[group] for name in ("server", "slow"))
        return list(TOGETHER).index(group) if group in TOGETHER else len(TOGETHER) + (not slow)

    items[:] = [item for group in sorted(groups, key=place) for item in groups[group]]


def pytest_unconfigure() -> None:
    """Remove the temporary files."""
    _FOLDER.cleanup()


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """Keep what is there from the garbage collector: the libraries' objects, which every collection would go through again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _usual_ports() -> Iterator[None]:
    """A test that does not say at which ports fails, whether a server of the user runs there or not."""
    with usual_ports_taken():
        yield


@pytest.fixture(scope="session", autouse=True)
def _few_speeds() -> Iterator[None]:
    """Time few rows of what a test exports, once: that would take most of the time of exporting a tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.model_timing.SPEED_ROWS", 16)
        patch.setattr("export.model_timing.SPEED_PASSES", 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def _servers_stop() -> Iterator[None]:
    yield
    wait_stopped()


@pytest.fixture(scope="session")
def once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Call ``make(empty folder)`` in one pytest-xdist worker only, and return the path it returned in all of them."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if hasattr(request.config, "workerinput") else base) / "once"

    def made(name: str, make: Callable[[Path], Path]) -> Path:
        shared.mkdir(exist_ok=True)
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = shared / f"{name}.path"
            if not done.exists():
                done.write_text(str(make(Path(tempfile.mkdtemp(prefix=f"{name}-", dir=shared)))), encoding="utf-8")
            return Path(done.read_text(encoding="utf-8"))

    return made


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Architecture → folder of a tiny random sentiment checkpoint of it, made once a run."""
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            from transformers import AutoModelForSequenceClassification

            tokenizer = make_tokenizer(TOKENIZERS[architecture])
            model = AutoModelForSequenceClassification.from_config(make_config(architecture, tokenizer))
            randomize(model)
            made[architecture] = tmp_path_factory.mktemp("checkpoints") / architecture
            model.save_pretrained(made[architecture])
            tokenizer.save_pretrained(made[architecture])
        return made[architecture]

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(make_checkpoint: Callable[[str], Path]) -> Path:
    """Folder of a tiny random BERT with a two-label head; takes 64 tokens."""
    return make_checkpoint("bert")


@pytest.fixture(scope="session")
def base_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny BERT without a head, fresh, so that it learns quickly; takes 64 tokens."""
    import torch
    from transformers import AutoModel

    torch.manual_seed(0)
    tokenizer = make_tokenizer("wordpiece")
    folder = tmp_path_factory.mktemp("checkpoints") / "base"
    AutoModel.from_config(make_config("bert", tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def review_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 labelled reviews, one of them empty, as tsv: columns text, label (negative, positive)."""
    rows = review_rows(299, seed=2)
    return write_tsv(tmp_path_factory.mktemp("rows") / "reviews.tsv", [("", "negative"), *rows])


@pytest.fixture
def in_folder(tmp_path: Path) -> Iterator[Path]:
    """Run the test in an empty folder of its own, so that artifacts/ lands there."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


@pytest.fixture(scope="session")
def sample_rows() -> list[dict[str, str]]:
    """The 40 reviews that come with the tests: columns text, label."""
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture(scope="session")
def texts(sample_rows: list[dict[str, str]]) -> list[str]:
    """All 872 SST-2 dev sentences where they are at hand, else the sample that comes with the tests."""
    if SST2.is_file():
        return [line.split("\t")[0] for line in SST2.read_text(encoding="utf-8").splitlines()[1:]]
    return [row["text"] for row in sample_rows]


@pytest.fixture(scope="session")
def trained_checkpoint(once: Once, sample_rows: list[dict[str, str]]) -> Path:
    """Folder of a small BERT that knows the sample rows by heart; takes 96 tokens."""
    return once("trained_checkpoint", lambda folder: train_bert(folder, sample_rows))


@pytest.fixture(scope="session")
def bundle(once: Once, trained_checkpoint: Path) -> Path:
    """fp32, fp16 and int8 of the trained checkpoint, verified on the sample rows."""
    return once("bundle", lambda folder: export_bundle(folder, trained_checkpoint, SAMPLE))


@pytest.fixture(scope="session")
def pair_bundle(once: Once, trained_checkpoint: Path, sample_rows: list[dict[str, str]]) -> Path:
    """The same checkpoint as one of pairs of texts."""

    def make(folder: Path) -> Path:
        pairs = zip(sample_rows, reversed(sample_rows), strict=True)
        lines = [f"{one['text']}\t{other['text']}\t{one['label']}" for one, other in pairs]
        rows = folder / "pairs.tsv"
        rows.write_text("\n".join(["text\tsecond\tlabel", *lines]) + "\n", encoding="utf-8")
        return export_bundle(folder, trained_checkpoint, rows, "--text-pair-column", "second", "--precision", "fp32")

    return once("pair_bundle", make)


@pytest.fixture(scope="session")
def packaged(tmp_path_factory: pytest.TempPathFactory, bundle: Path, pair_bundle: Path) -> Path:
    """One repository with every way of packaging that the tests ask."""
    from serving.options import PackageOptions
    from serving.repository import package

    repository = tmp_path_factory.mktemp("models") / "model_repository"
    ways: dict[str, dict[str, Any]] = {
        "ragged": {"bundle": bundle, "precision": "fp32", "batching": "ragged"},
        "alone": {"bundle": bundle, "precision": "fp32", "batching": "off"},
        "int8": {"bundle": bundle, "precision": "int8"},
        "fused": {"bundle": bundle, "precision": "fp32", "batching": "off", "layout": "fused", "instances": 2},
        "pairs": {"bundle": pair_bundle, "precision": "fp32", "batching": "ragged", "max_batch_size": 8},
    }
    for name, way in ways.items():
        package(PackageOptions(name=name, repository=repository, device="cpu", **way))
    return repository


@pytest.fixture(scope="session")
def server(packaged: Path, bundle: Path, pair_bundle: Path, trained_checkpoint: Path) -> Iterator[Server]:
    """One real server of all that is packaged, started once a run."""
    with running_server(serve_options(packaged), {"bundle": bundle, "pairs": pair_bundle}, trained_checkpoint) as server:
        yield server


@pytest.fixture(scope="session")
def direct_server(packaged: Path, bundle: Path, pair_bundle: Path, trained_checkpoint: Path) -> Iterator[Server]:
    """The same without a proxy in front: what the proxy refuses or removes passes here."""
    options = replace(serve_options(packaged), front="none")
    with running_server(options, {"bundle": bundle, "pairs": pair_bundle}, trained_checkpoint) as server:
        yield server


@pytest.fixture(scope="session")
def pipeline(trained_checkpoint: Path) -> Callable[..., Any]:
    """``transformers.pipeline`` on the original checkpoint: what every answer is held against."""
    import torch
    import transformers

    torch.set_num_threads(1)  # the server wants the other core
    return transformers.pipeline(
        "text-classification", model=str(trained_checkpoint), tokenizer=str(trained_checkpoint), truncation=True, max_length=96
    )


@pytest.fixture(scope="session")
def expected(pipeline: Callable[..., Any], texts: list[str]) -> list[dict[str, Any]]:
    """The pipeline's answer to each of ``texts``."""
    answers: list[dict[str, Any]] = pipeline(texts)
    return answers
