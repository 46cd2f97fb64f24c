"""Text that stays text in Markdown, whoever wrote it."""

from __future__ import annotations

import re


def escaped(text: str) -> str:
    """``text`` as itself: no markup, no cell's end, no line's end, no mention of anybody, no link."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", text)
    return text.replace("@", "&#64;").replace("://", "&#58;//")


def code(text: str) -> str:
    """``text`` as code; where it holds what code cannot in a table, as itself."""
    return escaped(text) if re.search(r"[`|\n\\]", text) or not text.strip() else f"`{text}`"
