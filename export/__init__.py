"""Checkpoint → bundle: fine-tuning, ONNX export, optimisation and verification."""
