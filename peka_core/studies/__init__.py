"""Experiments around the paper's own: the ladder, leaks, given embeddings, and the tables.

Each study returns one table, made from finished units of a run.
"""
