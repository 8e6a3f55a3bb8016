"""One file per text family."""
