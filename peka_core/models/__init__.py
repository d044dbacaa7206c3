"""Networks of others and their weight files: pathology encoders, scFoundation, and the small `mini`.

Each network gives the outputs of its official code, and each file is checked before it is loaded.
"""
