"""A report to be read: HTML, Markdown, the terminal."""
