"""Bundle → Triton model repository → answers. Imports neither :mod:`export` nor :mod:`benchmarks`."""
