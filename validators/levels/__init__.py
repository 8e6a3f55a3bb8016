"""The levels of a check: weights, metadata, graph, deployment, preprocessing."""
