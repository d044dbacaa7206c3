"""Experiments around the paper's own: the ladder, leaks, given embeddings, and the tables.

Each study returns one table. It is made from finished units (stored pieces of work) of a run.
"""
