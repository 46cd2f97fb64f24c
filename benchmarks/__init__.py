"""Speed and quality of what is served, against the PyTorch original."""
