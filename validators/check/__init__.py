"""A check from end to end: one bundle, its plan, the matrix of many, settings, baselines."""
