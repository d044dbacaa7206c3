"""HEST-Benchmark's files and the small tables beside them: read, written and checked.

Every cohort is a directory in this layout, and nothing else in the package opens its files.
"""
