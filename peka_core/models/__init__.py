"""Networks and weights that others made: pathology models, teachers, and encoders of the user.

`mini` is ours. It is here because it has a network and a file of weights like the others.
"""
