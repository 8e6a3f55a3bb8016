"""The inputs of a check: rows of tokens, pictures and sound, and how they are batched."""
