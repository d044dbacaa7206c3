"""Networks and weights that others made: pathology models, scFoundation, and encoders of the user.

`mini` is here too, although it is ours: it comes as a network and a file of weights like the
others.
"""
