"""Measuring models that generate text: how fast tokens come, served and in process, beside the originals."""
