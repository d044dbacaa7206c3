"""The drawn demo: tissue and counts that follow a known law, painted as H&E tiles.

Because the law is known, an oracle can say how well the best possible image model would do.
"""
