"""One sub-package per format, and the folder they write: a model in, files and a manifest out."""
