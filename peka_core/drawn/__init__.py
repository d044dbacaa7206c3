"""The drawn demo: tissue and counts that follow a known law, painted as H&E tiles.

Its law gives the oracle, which says how well any image model could do.
"""
