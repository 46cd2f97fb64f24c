"""Changes to a manifest that keep its own checksum right, as a stage with other inputs would write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serving.artifact import DIGEST_FIELD, MANIFEST, checksums, manifest_digest


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content with its own checksum."""
    return content | {DIGEST_FIELD: manifest_digest(content)}


def reseal(folder: Path, **changes: Any) -> None:
    """Record the files of ``folder`` as they are now, and ``changes`` of other fields, in its manifest."""
    path = folder / MANIFEST
    content = json.loads(path.read_text(encoding="utf-8")) | {"files": checksums(folder)} | changes
    path.write_text(json.dumps(sealed(content), ensure_ascii=False), encoding="utf-8")
