"""Where an artifact departs: what its modules compute, next to what the reference's do."""
