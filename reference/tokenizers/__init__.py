"""Tokenizers as facts: the Hub's classes, and tokenizer.json from the files that came before it."""
