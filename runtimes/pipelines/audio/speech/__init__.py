"""Speech to text by a decoder that writes timestamps: its prefix and rules, long sound, words, and joining pieces."""
