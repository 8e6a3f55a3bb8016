"""The pipelines that read sound."""
