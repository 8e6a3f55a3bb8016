"""The tokenizer of a pipeline as scripts use it: transformers' methods and attributes."""
