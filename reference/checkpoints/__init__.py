"""Checkpoints: what a folder or a .gguf file holds, read lazily, and the writers of the Hub's layout."""
