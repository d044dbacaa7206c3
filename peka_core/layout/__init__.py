"""HEST-Benchmark's files and the small tables beside them: read, written and checked.

Every cohort is a directory in this layout. Other code does not open its files itself.
"""
