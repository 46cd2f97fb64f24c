"""What runs inside Triton: copied verbatim into every packaged repository.

Imports only the standard library, numpy, tokenizers and ``triton_python_backend_utils``, and itself by relative imports. What runs
a model also imports onnxruntime, and what applies a chat template jinja2.
"""
