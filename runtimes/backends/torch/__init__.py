"""The torch definition itself as a backend."""
