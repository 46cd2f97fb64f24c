"""Counts the rows of a run that were truncated, for one warning at its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.reporting import logger, plural

SHOWN = 5
"""Number of truncated rows that the warning names."""


@dataclass
class TruncatedRows:
    """The rows of a run that were truncated.

    Attributes:
        before: Number of rows in front of them, which another run answered.
        rows: Number of rows that were answered.
        truncated: Number of those that were truncated.
        first: Numbers of the first of these, counted from 1.
    """

    before: int = 0
    rows: int = 0
    truncated: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, *, truncated: bool) -> None:
        """Count the next row."""
        self.rows += 1
        if truncated:
            self.truncated += 1
            if len(self.first) < SHOWN:
                self.first.append(self.before + self.rows)

    def warn(self, max_length: int) -> None:
        """Log a warning if rows were truncated.

        Args:
            max_length: Number of tokens that the server keeps of a row.
        """
        if not self.truncated:
            return
        named = ", ".join(map(str, self.first)) + (", …" if self.truncated > len(self.first) else "")
        logger.warning(
            f"{self.truncated} of {self.rows} rows {plural(self.truncated, 'was', 'were')} truncated: the model takes "
            f"{max_length} tokens, and the answers do not consider the rest: {plural(self.truncated, 'row')} {named}"
        )
