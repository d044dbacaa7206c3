"""What did the work? The ladder, the effect of scope, and a curve for each choice that matters.

Every study is a function of a run. Its numbers are differences to the frozen encoder, paired over
held-out patients.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from ..cohort import Split
from ..drawn.worlds import OFF, OWN, hidden_cues
from ..evaluation import evaluate
from ..protocols import PROTOCOLS
from ..recipe import RECIPES
from ..runner import stages
from ..runner.run import Run
from ..runner.rungs import Rung
from ..statistics import over_patients, paired
from . import comparisons, tables


def student(method: str = "bat", **changes: Any) -> Rung:
    """A student in encoder space, with some values of the profile's recipe changed."""
    return Rung(method, recipe=tuple(sorted(changes.items())))


CURVES = {  # title -> value of the recipe, and what it is set to
    "temperature of Eq. 5": ("tau", (0.5, 1.0, 2.0, 4.0)),
    "side b of a block": ("block", (4, 8, 16, 32)),
    "pseudo-labels k": ("k", (4, 8, 16, 32)),
    "epochs": ("epochs", (1, 2, 4, 8)),
}
SWITCHES = {  # from the paper as written to its code as run, one change at a time
    "additive bone": student("bone"),
    "raw pixels, 0 to 255": student(pixels="raw"),
    "two phases, frozen classifier": student(classifier_epochs=20),
    "tau = 2, times tau squared": student(tau=2.0, tau_squared=True),
    "k = 100": student(k=100),
    "qkv only": student(layers=("attn.qkv",)),
    "rate 1e-4": student(lr=1e-4),
    "constant rate, no warm-up": student(schedule="constant", warmup=0),
    "clipped by value": student(clip_by="value"),
    "projector with ReLU": student(projector="relu"),
    "no flips": student(flips=False),
    "10 epochs": student(epochs=10),
    "50 epochs": student(epochs=50),
    "a fifth of the spots validate, last epoch": student(
        keep="last", validation_share=0.2, validation_by="spot"
    ),
    "LoRA": student("lora"),
    "LoRA, dropout .1": student("lora", adapter_dropout=0.1),
    "AdaLoRA": student("adalora", lr=0.01),
    "AdaLoRA, ranks stay": student("adalora", lr=0.01, reallocate=False),
}
SHARES = (0.25, 0.5, 0.75, 1.0)
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0)  # weight of L_KD; L_struct has the rest
LOSSES, LAST_BLOCKS = comparisons.losses(), comparisons.last_blocks()
ALPHAS = tuple(10.0**power for power in range(-1, 6))


def ladder(work: Run, splits: Sequence[str] = ()) -> pd.DataFrame:
    """Every rung minus the frozen encoder under `strict`: one row for each rung and gene set.

    `splits` are the names of the scored splits; if it is empty, all of the cohort's own are scored.
    """
    drawn, scheme = work.profile.source == "demo", work.cohort().splits[0].scheme
    rungs = [("rung", rung) for rung in work.profile.ladder if rung != "oracle" or drawn]
    entries = tqdm(rungs, desc="ladder", unit="rung")
    table = tables.difference_table(work, PROTOCOLS["strict"], entries, scheme, splits)
    values = [" ".join(f"{p}:{v:.4f}" for p, v in part.items()) for part in table["values"]]
    table = table.drop(columns="label").rename(columns={"rung": "label"}).assign(values=values)
    names = ",".join(splits) or "all"
    return tables.named(work, table, protocol="strict", scope="nested", splits=names)


def scope_effects(work: Run, split: str = "spots/0") -> pd.DataFrame:
    """Each trained rung with scope nested and with `all` on a fold of `peka_paper`, and their gap.

    Both have the same fold, test spots and number of epochs, and no validation patients. With scope
    `all` the student is trained on the test spots too, so it has a quarter more spots and steps.
    """
    paper, rows = PROTOCOLS["peka_paper"], []
    rungs = [rung for rung in work.profile.ladder if isinstance(rung, Rung)]
    frozen = stages.score(work, "frozen", paper, splits=(split,))
    for rung in tqdm(rungs, desc="scope effects", unit="rung"):
        scores = {"frozen": frozen}
        scores |= {s: stages.score(work, rung, paper, s, (split,)) for s in ("nested", "all")}
        for a, b in (("nested", "frozen"), ("all", "frozen"), ("all", "nested")):
            row = {"label": rung.name, "difference": f"{a} - {b}"}
            row |= _difference(scores[a].scores, scores[b].scores)
            rows.append(row | tables.made_by(scores[a], scores[b]))
    table = pd.DataFrame(rows)
    return tables.named(work, table, protocol="peka_paper", pooling="section", split=split)


def curves(work: Run, splits: Sequence[str]) -> pd.DataFrame:
    """bat minus frozen under `strict`, for one value of the recipe changed at a time."""
    plain = work.profile.recipe
    points: list[tuple[str, float | str, Rung]] = []
    for title, (name, values) in CURVES.items():
        for value in values:
            changes: dict[str, Any] = {} if getattr(plain, name) == value else {name: value}
            points.append((title, value, student(**changes)))
    points.append(("pseudo-labels k", "leiden", student(k=64, labels="leiden")))
    for kd in LAMBDAS:
        rung = student(lambda_kd=kd, lambda_struct=1.0 - kd)
        points.append(("weight of L_KD (L_struct has the rest)", kd, rung))
    for share in SHARES:  # as many steps on fewer patients
        rung = student() if share == 1 else student(epochs=round(plain.epochs / share))
        points.append(("share of training patients, same steps", share, replace(rung, share=share)))
    return _against_frozen(work, points, splits)


def recipes(work: Run, splits: Sequence[str]) -> pd.DataFrame:
    """Students minus frozen under `strict`, from the profile's recipe to those of paper and code.

    Each switch between paper and code is changed alone, in encoder space. The two whole recipes are
    also scored in projected space, which paper and code give to the head. They keep their epochs
    and learning rates; block and rank are the profile's, since 256 does not divide `mini`.
    """
    base, size = work.profile.recipe, ("block", "rank", "alpha")
    rungs = {"the profile's recipe": student()} | SWITCHES
    for name, method in (("as_written", "bat"), ("as_run", "bone")):
        whole = replace(RECIPES[name], **{field: getattr(base, field) for field in size})
        rung = student(method, **dict(asdict(whole).items() - asdict(base).items()))
        for space in ("encoder", "projected"):
            rungs[f"{name}, whole ({space})"] = replace(rung, space=space)
    return _against_frozen(work, [("recipe", name, rung) for name, rung in rungs.items()], splits)


def cue_shares(work: Run, splits: Sequence[str]) -> pd.DataFrame:
    """bat minus frozen on the same tissue, with a share of the cue genes hidden from `mini`."""
    worlds = {0.0: OFF} | {s: hidden_cues(s) for s in (0.25, 0.5, 0.75)} | {1.0: OWN}
    title = "share of the cues that is hidden"
    points = [(title, share, student(), world) for share, world in worlds.items()]
    return _against_frozen(work, points, splits)


def _against_frozen(work: Run, points: list, splits: Sequence[str]) -> pd.DataFrame:
    """Students minus frozen under `strict` for points (curve, value, rung[, world])."""
    parts = []
    for curve, value, rung, *world in tqdm(points, desc="curves", unit="point"):
        there, entries = work.at(world[0]) if world else work, [("student", rung)]
        table = tables.difference_table(there, PROTOCOLS["strict"], entries, splits=splits)
        table = table.drop(columns=["label", "rung", "predictor", "values"])
        parts.append(table.assign(curve=curve, value=str(value)))
    table = pd.concat(parts, ignore_index=True)
    return tables.named(work, table, protocol="strict", scope="nested", split=",".join(splits))


def alphas(work: Run, splits: Sequence[str]) -> pd.DataFrame:
    """bat minus frozen under `strict` at fixed penalties of the head: a bad one fakes a win."""
    strict, rows = PROTOCOLS["strict"], []
    for alpha in ALPHAS:
        fixed = replace(strict, name="strict_fixed_alpha", alphas=(alpha,))
        wanted = [task for task in work.tasks(strict) if task.split.name in splits]
        tasks = [replace(task, protocol=fixed) for task in wanted]
        order = [task.split.name for task in tasks]
        inputs = ({n: stages.space_of(work, r, n) for n in order} for r in ("frozen", "bat"))
        frozen, bat = (evaluate(work.cohort(), x, fixed, tasks).scores for x in inputs)
        by_section = frozen.query("pooling == 'section' and genes == 'all'")
        level = by_section.groupby("patient")["pcc"].mean().mean()
        rows.append({"alpha": alpha, "frozen": level, **_difference(bat, frozen)})
    made = _made_with(work, ("frozen", "bat"), splits)
    names = {"protocol": "strict, alpha fixed", "split": ",".join(splits)}
    return tables.named(work, pd.DataFrame(rows), **names, **made)


def forgetting(work: Run, splits: Sequence[str] = ()) -> pd.DataFrame:
    """Balanced accuracy of the drawn tissue type of held-out patients, and minus frozen, by rung.

    A logistic regression on standardised features predicts the type; it is fitted on the training
    spots. No student is trained on the type, so this shows whether an encoder that is adapted to
    counts loses what else it could tell.
    """
    known = PROTOCOLS["strict"].splits(work.cohort())
    scored = [split for split in known if not splits or split.name in splits]
    rungs: dict[str, Rung | str] = {"frozen encoder": "frozen"}
    aligned = [rung for rung in work.profile.ladder if isinstance(rung, Rung)]
    rungs |= {rung.name: rung for rung in aligned if rung.space == "encoder"}
    rungs |= {"random encoder": "random"}
    rows, frozen = [], None
    for label, rung in tqdm(rungs.items(), desc="forgetting"):
        accuracy = _type_accuracy(work, rung, scored)
        frozen = accuracy if frozen is None else frozen
        row = {"label": label, "balanced_accuracy": accuracy.mean(), "n": len(accuracy)}
        rows.append(row | ({} if rung == "frozen" else over_patients(accuracy - frozen)))
    made = _made_with(work, rungs.values(), [split.name for split in scored])
    names = {"task": "tissue_type", "splits": ",".join(splits) or "all"}
    return tables.named(work, pd.DataFrame(rows), **names, **made)


def _type_accuracy(work: Run, rung: Rung | str, splits: list[Split]) -> pd.Series:
    """Balanced accuracy of the tissue type, by held-out patient."""
    obs, values = work.cohort().obs, {}
    kind, group = obs["tissue_type"].to_numpy(), obs["group"].to_numpy()
    for split in splits:
        x = stages.space_of(work, rung, split.name)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        predicted = model.fit(x[split.train], kind[split.train]).predict(x[split.test])
        for patient in np.unique(group[split.test]):
            here = group[split.test] == patient
            true, kinds = kind[split.test][here], np.unique(kind[split.test][here])
            values[patient] = recall_score(true, predicted[here], labels=kinds, average="macro")
    return pd.Series(values)


def _made_with(work: Run, rungs: Iterable[Rung | str], splits: Sequence[str]) -> dict[str, str]:
    """What made numbers that this process computes from features of some rungs on some splits."""
    pairs = [(rung, split) for rung in rungs for split in splits]
    return tables.made_by(work, *(stages.features(work, *pair).uns["made"] for pair in pairs))


def _difference(a: pd.DataFrame, b: pd.DataFrame) -> dict:
    """mean, low, high, p and n of `paired`, without the single patients."""
    return {name: value for name, value in paired(a, b).items() if name != "values"}


Study = Callable[[Run, Sequence[str]], pd.DataFrame]
STUDIES: dict[str, tuple[Study, int | None]] = {  # name -> study, and the number of its splits
    "ladder": (ladder, None),
    "ladder_scope": (lambda work, splits: scope_effects(work), None),
    "ladder_curves": (curves, 1),
    "ladder_recipes": (recipes, 2),
    "ladder_cues": (cue_shares, 2),
    "ladder_alpha": (alphas, 2),
    "ladder_forgetting": (forgetting, None),
    "ladder_losses": (lambda work, splits: comparisons.compare(work, LOSSES, splits), 1),
    "ladder_last_blocks": (lambda work, splits: comparisons.compare(work, LAST_BLOCKS, splits), 1),
}
DRAWN_ONLY = ("ladder_cues", "ladder_forgetting", "ladder_last_blocks")
