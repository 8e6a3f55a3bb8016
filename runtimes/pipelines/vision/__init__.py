"""The pipelines that read pictures alone."""
