"""Sources turn raw data into a cohort directory: her2st, HEST-1k, or a directory of the user.

A source knows where files come from and what they mean. It does not know how spots are scored.
"""
