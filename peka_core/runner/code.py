"""Which code makes a unit: a digest of the modules that its stage runs.

A result of old code must not pass for one of new code, so a unit's name contains this digest. After
an edit of `losses.py`, or a `git pull`, everything that depends on it is made again. Comments,
docstrings, layout and the wording of errors change nothing (`code_digest.py`). A stage's modules
count with all that they import. The modules that choose a stage's inputs count for every unit.
"""

import hashlib

from ..common.code_digest import digest_of_code, digest_of_module

TRAINED = ("alignment", "student", "targets", "teachers")
STAGES = {  # stage -> modules in which its work begins; all read counts and tiles with cohort.py
    "teacher": ("teachers",),
    "embedding": ("teachers",),
    "hashes": ("layout.duplicates",),
    "alignment": TRAINED,
    "features": ("student",),
    "quality": ("quality", "student", "teachers"),
    "umap": ("quality", "student", "teachers"),
    "evaluation": ("evaluation", "controls", "student"),
}

GIVES = ("runner.stages", "runner.inputs")


def code_of(unit) -> str:
    """Twelve hex digits that name the code behind a `units.Unit`.

    Networks and teachers that the unit does not use have no part in it.
    """
    from ..teachers import TEACHERS

    begin, aside = {"cohort", *STAGES.get(unit.stage, ())}, set()
    if unit.taught_by:
        begin |= {*TRAINED}
    if unit.taught_by == "genes":
        begin.add("tasks")  # chooses them
    if unit.teacher:
        begin |= {"teachers", "targets"}
    if unit.method == "oracle":
        begin |= {"drawn.oracle", "drawn.demo"}
    for name, teacher in TEACHERS.items():
        if not unit.teacher.startswith(name):
            aside.update(teacher.modules)
    if unit.encoder.partition("@")[0] in ("mini", "random", ""):
        aside.add("models.backbones")
    made = digest_of_code(frozenset(begin), frozenset(aside))
    given = " ".join(digest_of_module(module) for module in GIVES)
    return hashlib.sha256(f"{made} {given}".encode()).hexdigest()[:12]


def code_of_source(name: str) -> str:
    """Twelve hex digits that name the code which builds the cohorts of a source."""
    wing = "drawn" if name == "demo" else "sources"
    return digest_of_code(frozenset({f"{wing}.{name}", "layout.writing"}))
