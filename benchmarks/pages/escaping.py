"""Markdown in which texts stay texts, whatever they contain."""

from __future__ import annotations

import re
from collections.abc import Sequence


def escaped(text: str) -> str:
    """Escape a text: no markup, no end of a cell or line, no mention, no link."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", text)
    return text.replace("@", "&#64;").replace("://", "&#58;//")


def code(text: str) -> str:
    """Write a text as code; escape it instead if it contains what code in a table cannot."""
    return escaped(text) if re.search(r"[`|\n\\]", text) or not text.strip() else f"`{text}`"


def markdown_table(head: Sequence[str], cells: Sequence[Sequence[str]], *, words: int) -> str:
    """Write a table of cells that are Markdown already; the first ``words`` columns hold words, the others numbers."""
    rule = ["---" if index < words else "---:" for index in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(map(escaped, head)), rule, *cells])
