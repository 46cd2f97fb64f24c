"""Experiment trackers, as integrated by ``transformers``. Imports transformers."""

from __future__ import annotations

from collections.abc import Sequence

from serving.errors import SetupError


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown or not installed, before anything is trained.

    Args:
        names: Names of trackers, as ``transformers`` calls them.

    Raises:
        SetupError: A tracker is unknown or its package is missing.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

    available = get_available_reporting_integrations()
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise SetupError(f"there is no tracker {name!r}", hint=f"one of {', '.join(sorted(INTEGRATION_TO_CALLBACK))}")
        if name not in available:
            raise SetupError(f"--report-to {name} needs its package", hint=f"pip install {name}")
