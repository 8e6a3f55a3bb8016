"""Checkpoints, and the clean torch definition of every architecture: the ground truth."""
