"""Pinned downloads: the manifest with digests, the mirror, and the set-up of the network.

A file is fetched once, verified, and found again.
"""
