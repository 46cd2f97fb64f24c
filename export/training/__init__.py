"""How a model is trained, and what for: everything around `transformers.Trainer`."""
