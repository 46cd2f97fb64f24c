"""The front: Envoy, which stands between clients and Triton, with one filter of ours."""
