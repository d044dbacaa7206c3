"""PEKA, reproduced and taught.

README.md has a table of the files here, in the order of the paper's Fig. 1. CONTRIBUTING.md has a
map of the folders.
"""

import importlib
import os

# OpenMP threads that wait should sleep, not spin: beside other work on the same cores, spinning
# made training about ten times slower (benchmarks/README.md). This has no effect where torch and
# scikit-learn are loaded already.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Relative folders in the environment count from here. Notebooks, which run in another working
# directory, inherit the absolute paths.
for _name in ("PEKA_MIRROR", "PEKA_CACHE"):
    if os.environ.get(_name):
        os.environ[_name] = os.path.abspath(os.path.expanduser(os.environ[_name]))

_HOMES = {
    "open_cohort": "cohort",
    "load_encoder": "encoders",
    "load_teacher": "teachers",
    "embed_spots": "teachers",
    "Student": "student",
    "embed_tiles": "student",
    "Recipe": "recipe",
    "TrainingData": "training_data",
    "align": "alignment",
    "evaluate": "evaluation",
    "open_run": "runner.run",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Load a public name from its module on first use, so that `import peka_core` costs nothing."""
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names, for completion."""
    return __all__
