"""One file per audio family."""
