"""The reference's answers, how distances are measured, and every tolerance with its reason."""
