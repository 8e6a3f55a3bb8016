"""The pipelines that read text alone."""
