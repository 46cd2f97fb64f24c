"""Export of models that write: graphs whose key-value cache has a slot for each row, and their verification."""
