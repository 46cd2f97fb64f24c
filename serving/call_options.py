"""Options of requests that a user gives as ``KEY=VALUE``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from serving.pipeline_call import PipelineCall
from serving.records import parse_json
from serving.runtime.generation.option_lists import NONE
from serving.runtime.suggestions import unknown_options
from serving.runtime.tasks.base import ServedTask


def parse_call_options(task: ServedTask, given: Mapping[str, object]) -> dict[str, object]:
    """Convert options to the types of the pipeline's, and check them before anything is sent.

    Args:
        task: The task of the ensemble.
        given: Values by name. Strings are parsed; a recipe may give other values.

    Returns:
        Options for a call of the client.

    Raises:
        ValueError: The task has no such option, or does not allow the value.
    """
    known = sorted(task.call_options)
    if unknown := [name for name in given if not task.takes(name)]:
        raise ValueError(unknown_options(task.name, unknown, known))
    options = {name: _parse(task, name, value) if isinstance(value, str) else value for name, value in given.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the call itself warns
            PipelineCall.read(task, ([],), options, {})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(str(error.args[0]) if error.args else str(error)) from error
    return options


def _parse(task: ServedTask, name: str, text: str) -> object:
    """Parse a value as the request parameter's type says; an option of the client alone, a list, an object or null is JSON."""
    setting = task.options.get(name)
    if setting is not None and setting.kind is not str:
        if text == NONE:
            return None
        return setting.parse(text)
    if setting is not None and not text.startswith(("[", "{")):
        return text
    try:
        return parse_json(text)
    except ValueError:
        return text
