"""Tools that every other folder uses: the error class, safe files, checks of values, devices.

Nothing here knows about tissue, encoders or scores, and nothing here imports another folder.
"""
