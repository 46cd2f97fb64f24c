"""Completes the commands in hints and log lines with the options that name the server, so that a copy reaches no other one."""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
from collections.abc import Iterator

from serving.access_options import AccessOptions
from serving.errors import TritonizeError
from serving.option_fields import option_fields
from serving.options import RepositoryOptions, ServerPort
from serving.release_options import ReleaseOptions
from serving.reporting import logger

_NAME = r"[\w.-]*\w"
_COMMAND = re.compile(
    rf"\btritonize (?:(?P<alone>status|stop|serve)\b|(?:rollback|promote|load|unload) {_NAME}(?: (?:\d{{14}}|GENERATION)\b)?)"
)
"""A command with its arguments."""


def naming_server(text: str, options: ServerPort) -> str:
    """Complete the commands in a text.

    Args:
        text: A hint or a line of a log.
        options: The options of the command or server that the text is about. Those that have their default are left out.

    Returns:
        The text. Commands that are followed by an option are left as they are.
    """

    def completed(found: re.Match[str]) -> str:
        flags = "" if found.string.startswith(" --", found.end()) else _flags(found["alone"], options)
        return found[0] + flags

    return _COMMAND.sub(completed, text)


def _flags(command: str | None, options: ServerPort) -> str:
    """Return the options that ``status``, ``stop``, ``serve`` or a command with a NAME needs, with a space before each."""
    port = f" --http-port {options.http_port}" if options.http_port != ServerPort.http_port else ""
    repository = ""
    if isinstance(options, RepositoryOptions) and options.repository != RepositoryOptions.repository:
        repository = f" --repository {shlex.quote(str(options.repository))}"
    if command in ("stop", "serve"):
        return port + (repository if command == "serve" else "")
    if not isinstance(options, ReleaseOptions):
        return port
    return (port if options.url is None else f" --url {shlex.quote(options.url)}{_access(options.access)}") + repository


def _access(access: AccessOptions) -> str:
    """Return the options for an API key and TLS that were given. The key itself stands in a file."""
    given = {option.flag: getattr(access, option.field.name) for option in option_fields(AccessOptions)}
    return "".join(f" {flag}" if value is True else f" {flag} {shlex.quote(str(value))}" for flag, value in given.items() if value)


class _Completed(logging.Filter):
    """Completes the commands in each record."""

    def __init__(self, options: ServerPort) -> None:
        super().__init__()
        self._options = options

    def filter(self, record: logging.LogRecord) -> bool:
        """Complete the record."""
        record.msg, record.args = naming_server(record.getMessage(), self._options), ()
        return True


@contextlib.contextmanager
def server_named(options: ServerPort) -> Iterator[None]:
    """Complete the commands in the lines that the block logs, and in the error or interruption that ends it."""
    completed = _Completed(options)
    logger.addFilter(completed)
    try:
        yield
    except TritonizeError as error:
        error.message, error.hint = (naming_server(text, options) for text in (error.message, error.hint))
        error.args = (error.message, *error.args[1:])
        error.__notes__ = [naming_server(note, options) for note in getattr(error, "__notes__", ())]
        raise
    except KeyboardInterrupt as stopped:
        stopped.args = tuple(naming_server(str(argument), options) for argument in stopped.args)
        raise
    finally:
        logger.removeFilter(completed)
