"""The ways in which scripts and documentation call transformers' pipeline, each run on transformers and on isoform."""
