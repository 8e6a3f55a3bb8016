"""Videos as frames."""
