"""One file per vision family, and what they share."""
