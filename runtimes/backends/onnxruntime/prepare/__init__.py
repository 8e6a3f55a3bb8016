"""What is changed in a graph when it is opened, for speed."""
