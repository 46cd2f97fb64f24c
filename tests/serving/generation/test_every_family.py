"""Every family that generates, exported, packaged and served: 210 requests, 32 at once, have the tokens of transformers.

A sequence that differs counts as a tie if transformers gives it too once its scores change by as much as fp32 sums do in another
order. What was found is logged: ``pytest -m endurance --log-cli-level INFO`` shows it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from export.bundle import export
from export.export_options import ExportOptions
from export.generation import encoder_decoder_variants
from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from tests.helpers.decoders import DECODERS
from tests.helpers.family_checkpoints import ARCHITECTURES, POSITIONS, character_bytes, text_maker, word_parts, write_family
from tests.helpers.library_generation import LibraryGenerator
from tests.helpers.parity_clients import ask_all
from tests.helpers.parity_requests import INFER, STREAMED, ParityRequest, parity_requests
from tests.helpers.reviews import review_rows, write_tsv
from tests.helpers.servers import running, serve_options, wait_stopped
from tests.helpers.shared import STORIES

REQUESTS, MOST_NEW = 210, 16
MOST_TIES = 4
DISTINCT = 40
"""Least number of different tokens in the answers of a model: what has fewer proves little."""
CHAT = Path(__file__).parents[3] / "artifacts"
"""Where ``make export RECIPE=chat`` writes."""
BUNDLE, SMOLLM2 = CHAT / "chat" / "bundle", CHAT / "quickstart" / "smollm2"
ENGLISH = (
    "Once upon a time",
    " the",
    " dog",
    " and",
    " a little girl",
    ".",
    "\n",
    " Lily",
    " 12",
    " café",
    "好",
    " 🎉",
    "'t",
    " why?",
)
FIRST = ("llama", "bart")
"""A decoder and an encoder-decoder, whose tests ``make long`` runs; it leaves out the others."""
OTHERS = tuple(name for name in ARCHITECTURES if name not in FIRST)
GROUPS = (FIRST, *(OTHERS[start : start + 8] for start in range(0, len(OTHERS), 8)))
"""Families that one server serves."""

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """A model on a running server, and its checkpoint."""

    options: ServeOptions
    name: str
    checkpoint: Path


@pytest.fixture(scope="module")
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Family]]:
    """The families of a group on one server."""
    folder = tmp_path_factory.mktemp("families")
    repository = folder / "repository"
    for architecture in request.param:
        checkpoint = write_family(architecture, folder / "checkpoints" / architecture)
        _package(architecture, _export(folder, architecture, checkpoint), repository)
    with running(serve_options(repository)) as options:
        yield {name: Family(options, name, folder / "checkpoints" / name) for name in request.param}
    wait_stopped()


def _export(folder: Path, name: str, checkpoint: Path) -> Path:
    from transformers import AutoTokenizer

    make = text_maker(AutoTokenizer.from_pretrained(checkpoint), word_parts(name), seed=9)
    texts = [make(size).replace("\n", " ").replace("\t", " ") for size in (4, 9, 12, 16, 20, 24)]
    is_decoder, rows = name in DECODERS, folder / f"{name}.tsv"
    write_tsv(rows, [(text, text) for text in texts], "text\tsummary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_decoder_variants, "ANSWER_TOKENS", 12)
        export(
            ExportOptions(
                artifacts=folder, name=name, task="text-generation" if is_decoder else "summarization", checkpoint=str(checkpoint),
                test=str(rows), precision=("fp32",), device="cpu", max_length=POSITIONS,
            )
        )  # fmt: skip
    return folder / name / "bundle"


def _package(name: str, bundle: Path, repository: Path) -> None:
    package(
        PackageOptions(
            name=name, bundle=bundle, repository=repository, precision="fp32", device="cpu", threads=1,
            capacity=POSITIONS if name in DECODERS else 64,
        )
    )  # fmt: skip


def _compare(family: Family, requests: list[ParityRequest], library: LibraryGenerator, record: Any) -> None:
    """Ask the server and the library, and let both agree."""
    expected = [library.answer(request) for request in requests]
    found = ask_all(family.options, family.name, requests)
    triples = zip(requests, expected, found, strict=True)
    different = [(request, right, other) for request, right, other in triples if not right.equals(other)]
    failures = [one for one in different if not library.is_tie(one[0], one[2])]
    ties = len(different) - len(failures)
    distinct = len({token for answer in expected for tokens in answer.tokens or () for token in tokens})
    counts = {"requests": len(requests), "equal": len(requests) - len(different), "ties": ties, "failures": len(failures)}
    for name, count in (counts | {"distinct_tokens": distinct}).items():
        record(name, count)
    logger.info("%s: %s, distinct tokens %d", family.name, counts, distinct)
    assert not failures, "\n\n".join("\n".join(map(repr, one)) for one in failures[:3])
    assert ties <= MOST_TIES
    assert distinct >= DISTINCT


@pytest.mark.parametrize(
    ("group", "architecture"),
    [
        pytest.param(group, name, id=name, marks=pytest.mark.long if group == FIRST else pytest.mark.endurance)
        for group in GROUPS
        for name in group
    ],
    indirect=["group"],
    scope="module",
)
def test_answers_of_a_family(group: dict[str, Family], architecture: str, record_property: Any) -> None:
    family = group[architecture]
    library = LibraryGenerator(family.checkpoint)
    tokens = [token for token in range(10, library.model.config.vocab_size) if "<unused" not in library.tokenizer.decode([token])]
    chosen = random.Random(1).sample(tokens, 60)
    requests = parity_requests(
        REQUESTS,
        text_maker(library.tokenizer, word_parts(architecture), seed=2),
        end=chosen[:40],
        tokens=chosen[40:],
        bytes_=character_bytes(library.tokenizer),
        most_new=MOST_NEW,
        streams=architecture in DECODERS,
    )
    assert {request.way for request in requests} == set(STREAMED if architecture in DECODERS else INFER)
    _compare(family, requests, library, record_property)


def _english(library: LibraryGenerator, *, chat: bool, most_new: int) -> list[ParityRequest]:
    """Requests to a model of English: common words end some of its answers, and others are forbidden."""
    ids = library.tokenizer.convert_tokens_to_ids
    vocabulary = library.tokenizer.get_vocab()
    common = [ids(word) for word in (".", ",", "▁and", "Ġand", "▁to", "Ġto", "▁was", "Ġwas") if word in vocabulary]
    others = [
        ids(word) for word in ("▁the", "Ġthe", "▁a", "Ġa", "s", "▁she", "Ġshe", "▁in", "Ġin", "▁I", "ĠI") if word in vocabulary
    ]
    make = text_maker(library.tokenizer, ENGLISH, seed=3)
    bytes_ = character_bytes(library.tokenizer)
    return parity_requests(REQUESTS, make, end=common, tokens=others, bytes_=bytes_, most_new=most_new, streams=True, chat=chat)


@pytest.mark.endurance
@pytest.mark.skipif(not STORIES.exists(), reason="needs ../shared/checkpoints/stories260K-hf")
def test_answers_of_stories(tmp_path: Path, record_property: Any) -> None:
    rows = write_tsv(tmp_path / "rows.tsv", review_rows(24, seed=5))
    export(
        ExportOptions(
            artifacts=tmp_path, name="stories", task="text-generation", checkpoint=str(STORIES), test=str(rows),
            precision=("fp32",), device="cpu",
        )
    )  # fmt: skip
    package(PackageOptions(artifacts=tmp_path, name="stories", repository=tmp_path / "repository", precision="fp32", device="cpu"))
    library = LibraryGenerator(STORIES)
    with running(serve_options(tmp_path / "repository")) as options:
        _compare(Family(options, "stories", STORIES), _english(library, chat=False, most_new=40), library, record_property)


@pytest.mark.endurance
@pytest.mark.skipif(not (BUNDLE.exists() and SMOLLM2.exists()), reason="needs the bundle that make export RECIPE=chat writes")
def test_answers_of_smollm2(tmp_path: Path, record_property: Any) -> None:
    package(PackageOptions(bundle=BUNDLE, name="chat", repository=tmp_path / "repository", precision="fp32", device="cpu"))
    library = LibraryGenerator(SMOLLM2)
    with running(serve_options(tmp_path / "repository")) as options:
        _compare(Family(options, "chat", SMOLLM2), _english(library, chat=True, most_new=12), library, record_property)
