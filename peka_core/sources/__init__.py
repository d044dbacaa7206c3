"""Raw data -> cohort directory: one module a source, each with `build(path, **options)`."""
