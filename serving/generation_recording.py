"""Records the tokens that a model which generates must give to its example, computed in this process from the package itself."""

from __future__ import annotations

from pathlib import Path

from serving.bundle import Bundle
from serving.manifests import ExpectedAnswer
from serving.plan import Plan


def record_generation(version: Path, bundle: Bundle, plan: Plan) -> tuple[ExpectedAnswer, ...]:
    """Compute the answer to the task's example.

    Args:
        version: Folder of the packaged model, which is complete.
        bundle: The bundle.
        plan: How it is served.
    """
    raise NotImplementedError
