"""What a Triton says whose APIs are restricted to those who send a key.

With ``--http-restricted-api=inference:x-api-key=KEY`` and ``--grpc-restricted-protocol=inference:x-api-key=KEY``, Triton itself
compares a header with the key. Over gRPC, the name of the header has a prefix. The status of a refusal tells something else:
UNAVAILABLE over gRPC, and 403 over HTTP.
"""

from __future__ import annotations

import re

from serving.access import API_KEY_HEADER, API_KEY_VARIABLE
from serving.errors import RequestError

KEY_HINT = f"give a valid API key: --api-key-file, api_key_file=…, api_key=…, or the variable {API_KEY_VARIABLE}"
OTHER_HEADER_HINT = f"clients send their key in the header {API_KEY_HEADER}: start Triton with …:{API_KEY_HEADER}=KEY"
CLOSED_HEADER = "closed"
"""The header by which ``tritonize serve`` closes APIs to everybody: its name goes on with a line break, which nobody can send."""
_RESTRICTED = re.compile(r"This (?:protocol|API) is restricted, expecting header '(?:triton-grpc-protocol-)?([^'\n]*)")


def refused_key(message: str, url: str) -> RequestError | None:
    """Return the error of a client whose key is wrong or missing, or of an API that is closed; None if Triton says something else.

    Args:
        message: What Triton says.
        url: Its address.
    """
    found = _RESTRICTED.search(message)
    if found is None:
        return None
    header = found[1]
    if header == CLOSED_HEADER:
        return RequestError(f"this part of the API of {url} is closed", status="PERMISSION_DENIED")
    return RequestError(
        f"{url} wants a valid key in the header {header}",
        status="UNAUTHENTICATED",
        hint=KEY_HINT if header == API_KEY_HEADER else OTHER_HEADER_HINT,
    )
