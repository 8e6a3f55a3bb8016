"""Generation: settings, logits processors, searches, and one loop for every backend."""
