"""Documents: words with boxes, read from a picture or given."""
