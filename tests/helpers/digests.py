"""The digest of a request by its definition, and whether the digests of a running ensemble are these."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from serving.options import ServeOptions


def expected_digest(row: Mapping[str, bytes]) -> int:
    """Of one row: its elements by the name of their tensor."""
    crc = 0
    for name in sorted(row):
        crc = zlib.crc32(struct.pack("<I", len(row[name])) + row[name], crc)
    return crc + 2**32 * (sum(map(len, row.values())) % 2**20)


def digests_of(
    options: ServeOptions, protocol: str, name: str, rows: Sequence[Mapping[str, bytes]], parameters: dict[str, Any] | None
) -> np.ndarray:
    """What the ensemble answers in one request, asked without our client and by name: a proxy removes it for everybody else."""
    from tritonclient import grpc, http

    module: Any = grpc if protocol == "grpc" else http
    url = options.grpc_url if protocol == "grpc" else options.base_url.removeprefix("http://")
    inputs = []
    for tensor in rows[0]:
        array = np.array([row[tensor] for row in rows], dtype=np.object_)[:, None]
        inputs.append(module.InferInput(tensor, list(array.shape), "BYTES"))
        inputs[-1].set_data_from_numpy(array)
    with module.InferenceServerClient(url) as client:
        found: np.ndarray = client.infer(
            name, inputs, outputs=[module.InferRequestedOutput("DIGEST")], parameters=parameters
        ).as_numpy("DIGEST")
    return found


def assert_digests_are_right(
    options: ServeOptions, names: Sequence[str], rows: Sequence[Mapping[str, str]], parameters: dict[str, Any] | None = None
) -> None:
    """Of ``rows``, each alone, all at the same time, and together in one request, over both protocols, twice."""
    encoded = [{tensor: text.encode() for tensor, text in row.items()} for row in rows]
    wanted = [expected_digest(row) for row in encoded]
    assert len(set(wanted)) == len(wanted) > 1
    requests = [[row] for row in encoded] * 2 + [encoded]
    for name in names:
        for protocol in ("grpc", "http"):
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(lambda request: digests_of(options, protocol, name, request, parameters), requests))  # noqa: B023
            assert {answer.dtype for answer in found} == {np.dtype(np.int64)}
            assert [answer.tolist() for answer in found] == [[[digest]] for digest in wanted * 2] + [
                [[digest] for digest in wanted]
            ], (name, protocol)
