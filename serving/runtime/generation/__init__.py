"""Generates text in Triton: a decoder with a cache of slots, continuous batching, sampling, and text that streams."""
