"""The digest of a request's texts: the definition that proxies and clients rely on."""

from __future__ import annotations

import pytest

from serving.runtime.digest import row_digests
from tests.helpers.digests import expected_digest


def test_known_digests() -> None:
    """Others compute them too: they must never change."""
    assert row_digests({"TEXT": [b"good film", b""]}).tolist() == [39551380842, 558161692]


def test_columns_are_ordered_by_the_names_of_their_tensors() -> None:
    columns = {"TEXT": [b"one", b"two"], "CANDIDATE_LABELS": [b'["a"]', b"[]"]}
    found = row_digests(columns)
    assert found.dtype.name == "int64" and found.shape == (2,)
    assert found.tolist() == row_digests(dict(reversed(columns.items()))).tolist()
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    assert found.tolist() == [expected_digest(row) for row in rows]


def test_where_one_text_ends_matters() -> None:
    digests = row_digests({"A": [b"ab", b"a", b"", b"abc"], "B": [b"c", b"bc", b"abc", b""]}).tolist()
    assert len(set(digests)) == 4


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 5 * 2**20 + 7])
def test_a_digest_is_a_number_that_a_double_holds(size: int) -> None:
    (digest,) = row_digests({"TEXT": [bytes(size)]}).tolist()
    assert digest >> 32 == size % 2**20
    assert 0 <= digest < 2**52 and int(float(digest)) == digest


def test_columns_of_unlike_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        row_digests({"A": [b"a"], "B": []})
