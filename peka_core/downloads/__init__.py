"""Files that the package downloads: what the manifest pins, and one function that fetches them.

A file comes from a mirror, from the cache or from its address, and its digest is always checked.
"""
