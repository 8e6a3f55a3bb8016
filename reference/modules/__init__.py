"""Semantic operations, the layers that families compose, and the whole module of a task of several parts."""
