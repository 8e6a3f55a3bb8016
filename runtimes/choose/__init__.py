"""Which backend and form run a model fastest on this machine: measured, kept, and chosen from."""
