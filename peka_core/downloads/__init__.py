"""Files that the package downloads: what the manifest pins, and one function that fetches them.

A file is taken from a mirror, from the cache or from its address, and it is always the same bytes.
"""
