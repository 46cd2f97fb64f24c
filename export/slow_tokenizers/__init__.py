"""Fast tokenizers for checkpoints of which ``transformers`` has a slow one only, because serving needs a ``tokenizer.json``."""
