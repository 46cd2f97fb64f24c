"""A text on which the tokenizer panics, through a real server: refused alone, without a word about the server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import Sequence, Split

from serving.client import TritonPipeline
from serving.errors import RequestError
from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from tests.helpers.exporting import export_bundle
from tests.helpers.parity import assert_same
from tests.helpers.reviews import SAMPLE
from tests.helpers.servers import running, serve_options

pytestmark = [pytest.mark.server, pytest.mark.long]
PANIC = "x" * 40


@pytest.fixture(scope="module")
def fragile(trained_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeOptions]:
    """A server whose tokenizer splits by an expression that backtracks without end on a row of x."""
    folder = tmp_path_factory.mktemp("fragile")
    checkpoint = shutil.copytree(trained_checkpoint, folder / "checkpoint")
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.pre_tokenizer = Sequence([Split(Regex("(x+x+)+y"), "isolated"), tokenizer.pre_tokenizer])
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    bundle = export_bundle(folder, checkpoint, SAMPLE, "--precision", "fp32")
    repository = folder / "model_repository"
    package(PackageOptions(bundle=bundle, repository=repository, name="fragile", device="cpu", batching="ragged"))
    with running(serve_options(repository)) as options:
        yield options


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_panic_refuses_its_own_request_alone(fragile: ServeOptions, protocol: str) -> None:
    url = fragile.grpc_url if protocol == "grpc" else fragile.base_url.removeprefix("http://")
    texts = [f"a warm film, {place} times" for place in range(40)]
    with TritonPipeline("fragile", url=url, protocol=protocol) as pipe, ThreadPoolExecutor(8) as pool:
        expected = [pipe(text) for text in texts]

        def ask(text: str) -> Any:
            try:
                return pipe(text)
            except RequestError as error:
                return error

        answers = list(pool.map(ask, [text for pair in zip(texts, [PANIC] * len(texts), strict=True) for text in pair]))
        assert_same(answers[::2], expected)
        for refused in answers[1::2]:
            assert refused.status == "INTERNAL"
            assert refused.message == "in ensemble 'fragile', this request could not be prepared"
