"""`isoform chat`: a conversation in the terminal, or one answer for a script."""
