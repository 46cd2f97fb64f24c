"""Measure the speed and quality of a served model against the PyTorch original.

The package exports no names of its own; use its command line, or import the modules.
"""

__all__: list[str] = []
