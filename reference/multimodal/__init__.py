"""One file per family that reads more than one kind of input, and what they share."""
