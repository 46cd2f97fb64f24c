"""Turn a checkpoint into a bundle: fine-tuning, ONNX export, optimization and verification.

The package exports no names of its own; use its command line, or import the modules.
"""

__all__: list[str] = []
