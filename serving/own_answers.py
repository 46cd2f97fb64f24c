"""Whether an answer belongs to the request: see :mod:`serving.runtime.digest`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from serving.errors import DataError, RequestError
from serving.runtime.digest import ForeignAnswerError, row_digests


def require_own_answer(found: npt.NDArray[np.int64], sent: Mapping[str, Sequence[bytes]]) -> None:
    """Check that an answer has the digests of the rows that were sent.

    Args:
        found: INT64 ``[rows, 1]``, the digests that came with the answer.
        sent: The rows of each input tensor.

    Raises:
        RequestError: The answer belongs to another request.
    """
    if not np.array_equal(found.reshape(-1), row_digests(sent)):
        raise RequestError(
            f"{ForeignAnswerError()}: its digest is not that of the texts sent",
            status="INTERNAL",
            hint="send the request again; if this repeats, restart the server",
        )


def encoded(text: str) -> bytes:
    """Return a text as UTF-8.

    Raises:
        DataError: It cannot be encoded.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"a text holds half of a surrogate pair, which UTF-8 cannot encode: {text!r:.80}",
            hint="decode the bytes that the text came from as UTF-8",
        ) from error
