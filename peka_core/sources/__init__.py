"""Raw data of others, made into a cohort directory: her2st, HEST-1k, or a directory of the user.

A source knows where files come from and what they mean, and nothing about how spots are scored.
"""
