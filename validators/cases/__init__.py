"""The cases of a check: rows of tokens, pictures, sound and encoder states, and how they are batched."""
