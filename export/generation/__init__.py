"""Export of models that write text: graphs whose keys and values stay in a cache of slots, and their verification."""
