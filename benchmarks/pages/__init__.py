"""Pages of a report: HTML, Markdown, the terminal."""
