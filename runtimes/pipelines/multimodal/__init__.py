"""The pipelines that read pictures and text."""
