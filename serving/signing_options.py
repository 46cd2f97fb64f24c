"""Options of signatures. Light, so that ``--help`` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from serving.option_fields import Option


@dataclass(frozen=True, kw_only=True)
class SigningOptions:
    """Options of ``tritonize sign``."""

    key: Annotated[
        Path,
        Option("Private key on an elliptic curve (P-256, P-384 or P-521), as a PEM file.", path="existing-file", metavar="FILE"),
    ]


@dataclass(frozen=True, kw_only=True)
class VerificationOptions:
    """Whose artifacts a stage accepts."""

    verify_key: Annotated[
        Path | None,
        Option(
            "Public key, as a PEM file. What was not signed with its private key (tritonize sign) is refused.",
            path="existing-file",
            metavar="FILE",
        ),
    ] = None
