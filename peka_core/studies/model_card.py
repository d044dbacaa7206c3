"""The card of a model for people, README.md, made from card.json; licences and what is not known.

Neither names a patient, a section or a folder of this machine, because a model is there to share.
"""

import pandas as pd

from ..models.encoder_files import BUNDLED, manifest_entries
from ..models.own_file import is_own
from ..runner.run import Run
from ..runner.rungs import Rung
from ..teachers import TEACHERS
from ..unfamiliar import QUANTILE, SLIDE_SHARE
from .expected import Expected

NOT_STATED = "not stated; ask its owner before you share the model"


def licences_of(work: Run, rung: Rung, samples: pd.DataFrame) -> dict[str, str]:
    """Terms that the model inherits from encoder, data and, for a student, from the teacher."""
    name = rung.encoder or work.profile.encoder
    entry = manifest_entries().get(name)
    terms = entry.terms if entry else NOT_STATED
    if name in BUNDLED:
        terms = "licence MIT; no gate"
    elif not entry and not is_own(name):
        config = getattr(work.encoder(name).model, "pretrained_cfg", None) or {}
        terms = config.get("license") or NOT_STATED
    data = sorted(set(samples["license"]) - {""})
    found = {"encoder": terms, "data": "; ".join(data) or NOT_STATED}
    if rung.method != "none":
        teacher = work.profile.teacher
        found["teacher"] = f"{teacher}: {TEACHERS[teacher].description}"
    return found


def notes_of(expected: Expected, method: str, split: str, left_out: int) -> list[str]:
    """One sentence for each thing that the model's numbers do not say.

    Args:
        left_out: number of sections that were left out because they are copies.
    """
    notes, n = [], expected.n
    if not n:
        notes.append(
            "Nothing could be held out, so neither an expected PCC nor a threshold of the distance "
            "is known."
        )
    elif expected.unit == "section":
        notes.append(
            f"{n} sections were held out, while others of the same patients were in training. So "
            "single genes have no interval, and nothing is said about new patients."
        )
    elif n < 3:
        notes.append(f"{n} patients were held out. That is too few for an interval.")
    if split != "all":
        notes.append(
            "Student and head saw only the training spots of one split, so that its test sections "
            "are new slides."
        )
        if method != "none" and n:
            notes.append(
                "The student was trained on the spots that were held out from the head. So these "
                "scores are too high for a new slide."
            )
    if left_out:
        many = "1 section is a copy" if left_out == 1 else f"{left_out} sections are copies"
        notes.append(f"{many} of others and did not train the head.")
    if n and expected.no_interval:
        notes.append(f"There is no 80 % interval for a slide's mean: {expected.no_interval}.")
    return notes


def readme(card: dict) -> str:
    """The text of README.md, with the front matter that the Hugging Face hub reads."""
    cohort, encoder, made = card["cohort"], card["encoder"], card["made"]
    count = lambda n, word: f"{n} {word}{'s' * (n != 1)}"
    entry = manifest_entries().get(encoder["name"])
    base = f"base_model: {entry.hub_id}\n" if entry and entry.hub_id else ""
    adapter = "" if card["method"] == "none" else f" with an adapter ({card['method']})"
    drawn = cohort["technologies"] == ["drawn"]
    tissue = ", ".join([*cohort["organs"], *cohort["technologies"]]) or "not stated"
    sizes = card["um_per_px"]
    size = "not stated"
    if sizes:
        size = " to ".join(dict.fromkeys(f"{value:.4g}" for value in sizes)) + " um per px"
    split = card["split"]
    trained = "all spots" if split == "all" else f"the training spots of split {split}"
    notes = "".join(f"- {note}\n" for note in card["notes"])
    licences = "".join(f"- {name}: {terms}\n" for name, terms in card["licences"].items())
    return f"""---
license: other
license_name: inherited
library_name: peka_core
tags: [pathology, spatial-transcriptomics, gene-expression]
{base}---

# Gene expression from tiles of {cohort["name"]}

{card["use"]}

This folder predicts ln(1 + CP10K) of {card["genes"]} genes from tiles of 112 um. It uses the frozen
encoder {encoder["name"]}{adapter} and a ridge regression. It does not hold the weights of the
encoder: `peka predict` downloads them at first use, or takes a file (`--weights`), under their own
terms.{" Trained on drawn tissue: of no use on real slides." if drawn else ""}

## Training

- cohort: {cohort["name"]}; {count(cohort["patients"], "patient")}, \
{count(cohort["sections"], "section")}, {count(cohort["spots"], "spot")}
- tissue and technology: {tissue}
- pixel size of the slides: {size}
- encoder: {encoder["name"]}, weights {encoder["digest"][:12]}, {encoder["precision"]}
- student: {card["method"]}, space {card["space"]}, trained on {trained}, seed {card["seed"]}

## What to expect

{_expected(card)}
{notes}
## Unfamiliar tissue

{_unfamiliar(card["threshold"])}

## Licences

{licences}
Adapter and head were made from all of these, and their terms hold for this folder too.

## Use

`peka predict --model FOLDER --slide SLIDE --out OUT`, with peka_core {made["peka_core"]}
(commit {made["commit"] or "unknown"}). The encoder must be the one above, with the same weights.
"""


def _expected(card: dict) -> str:
    """Scores beside those of controls, and how many genes are supported."""
    scores, unit = card["scores"], card["held_out"]["unit"]
    if not scores:
        return ""
    count = lambda n: f"{n} {unit}{'s' * (n != 1)}"
    number = lambda value: "" if value is None else f"{value:.3f}"
    rows = ["| | PCC | 95 % interval | n |", "|---|---|---|---|"]
    for name, score in scores.items():
        ends = [number(score[key]) for key in ("low", "high")]
        interval = " to ".join(ends) if all(ends) else ""
        rows.append(f"| {name} | {number(score['mean'])} | {interval} | {count(score['n'])} |")
    table = "\n".join(rows)
    certain = "both with the whole 95 % interval"
    if scores["model"]["low"] is None or unit != "patient":
        certain = (
            "on average. There is no interval, so half of the genes would be supported by chance "
            "if tile colour were as good as the model"
        )
    more = ["Do not read maps of the others."] * (card["supported"] < card["genes"])
    if not card["no_interval"]:
        more.append(
            "For the mean over a slide, `genes.csv` has the half width of an 80 % interval."
        )
    return f"""Mean Pearson correlation (PCC) over genes, in held-out {unit}s, under protocol
{card["protocol"]}. `genes.csv` has the PCC of each gene.

{table}

{card["supported"]} of {card["genes"]} genes are supported: in what was held out, their PCC is above
0 and above that of tile colour, {certain}. {" ".join(more)}
"""


def _unfamiliar(threshold: float | None) -> str:
    """How tiles and slides are flagged, or that they are not."""
    if threshold is None:
        return "No threshold could be measured, so no tile is flagged as unfamiliar."
    beyond, half = (f"{100 * share:.0f} %" for share in (1 - QUANTILE, SLIDE_SHARE))
    return (
        f"A tile whose distance to the training tiles is above {threshold:.2f} is called "
        f"unfamiliar. In what was held out, {beyond} of the tiles are. A slide with more than "
        f"{half} such tiles is unfamiliar as a whole. Unfamiliar does not mean wrong, and the "
        "distance does not reliably notice another zoom."
    )
