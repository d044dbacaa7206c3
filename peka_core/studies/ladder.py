"""What did the work? The ladder, the scope effect, and one curve for each choice that could have made the result.

Every study is a function of a run; its numbers are differences to the frozen encoder, paired over held-out patients.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from ..drawn.worlds import OFF, OWN, hidden_cues
from ..evaluation import evaluate
from ..protocols import PROTOCOLS
from ..recipe import RECIPES
from ..runner import stages
from ..runner.run import Run
from ..runner.rungs import Rung
from ..statistics import over_patients, paired
from . import tables

CURVES = {
    "temperature of Eq. 5": ("tau", (0.5, 1.0, 2.0, 4.0)),
    "side b of a block": ("block", (4, 8, 16, 32)),
    "pseudo-labels k": ("k", (4, 8, 16, 32)),
    "epochs": ("epochs", (1, 2, 4, 8)),
}
SWITCHES = {  # from the paper as written to its code as run, one change of the profile's recipe at a time
    "additive bone": Rung("bone"),
    "raw pixels, 0 to 255": Rung("bat", recipe=(("pixels", "raw"),)),
    "two phases, frozen classifier": Rung("bat", recipe=(("classifier_epochs", 20),)),
    "tau = 2, times tau squared": Rung("bat", recipe=(("tau", 2.0), ("tau_squared", True))),
    "k = 100": Rung("bat", recipe=(("k", 100),)),
    "qkv only": Rung("bat", recipe=(("targets", ("attn.qkv",)),)),
    "rate 1e-4": Rung("bat", recipe=(("lr", 1e-4),)),
    "constant rate, no warm-up": Rung("bat", recipe=(("schedule", "constant"), ("warmup", 0))),
    "clipped by value": Rung("bat", recipe=(("clip_by", "value"),)),
    "projector with ReLU": Rung("bat", recipe=(("projector", "relu"),)),
    "no flips": Rung("bat", recipe=(("flips", False),)),
    "10 epochs": Rung("bat", recipe=(("epochs", 10),)),
    "50 epochs": Rung("bat", recipe=(("epochs", 50),)),
    "a fifth of the spots aside, last epoch": Rung(
        "bat", recipe=(("keep", "last"), ("validation_share", 0.2), ("validation_by", "spot"))
    ),
    "LoRA": Rung("lora"),
    "LoRA, dropout .1": Rung("lora", recipe=(("adapter_dropout", 0.1),)),
    "AdaLoRA": Rung("adalora", recipe=(("lr", 0.01),)),
    "AdaLoRA, ranks stay": Rung("adalora", recipe=(("lr", 0.01), ("reallocate", False))),
}
SHARES = (0.25, 0.5, 0.75, 1.0)
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of L_KD; L_struct has the rest
ALPHAS = tuple(10.0**power for power in range(-1, 6))


def ladder(work: Run, splits: Sequence[str] = ()) -> pd.DataFrame:
    """Every rung minus the frozen encoder under `strict`: one row a rung and gene set.

    Args:
        splits: names of the splits to score; empty means all of the cohort's own.
    """
    rows = [
        ("rung", rung)
        for rung in work.profile.ladder
        if rung != "oracle" or work.profile.source == "demo"
    ]
    scheme = work.cohort().splits[0].scheme
    table = tables.difference_table(
        work,
        PROTOCOLS["strict"],
        tqdm(rows, desc="ladder", unit="rung"),
        scheme=scheme,
        splits=splits,
    )
    by_patient = [
        " ".join(f"{name}:{v:.4f}" for name, v in values.items()) for values in table["values"]
    ]
    table = table.drop(columns="label").rename(columns={"rung": "label"}).assign(values=by_patient)
    return _named(work, table).assign(
        protocol="strict", scope="nested", splits=",".join(splits) or "all"
    )


def scope_effects(work: Run, split: str = "spots/0") -> pd.DataFrame:
    """Under `peka_paper`, fold `split`: each trained rung nested and `all`, and their paired difference per patient.

    Same fold, same test spots, as many epochs, no validation groups: the alignment of scope all saw the test spots too, and so has a
    quarter more spots and steps.
    """
    paper, rows = PROTOCOLS["peka_paper"], []
    base = stages.score(work, "frozen", paper, splits=(split,))
    for rung in tqdm(
        [r for r in work.profile.ladder if isinstance(r, Rung)], desc="scope effects", unit="rung"
    ):
        made = {"frozen": base} | {
            scope: stages.score(work, rung, paper, scope, (split,)) for scope in ("nested", "all")
        }
        for a, b in (("nested", "frozen"), ("all", "frozen"), ("all", "nested")):
            found = _without_values(paired(made[a].scores, made[b].scores)) | tables.made_by(
                made[a], made[b]
            )
            rows.append({"label": rung.name, "difference": f"{a} - {b}", **found})
    return _named(work, pd.DataFrame(rows)).assign(
        protocol="peka_paper", pooling="section", split=split
    )


def curves(work: Run, splits: Sequence[str]) -> pd.DataFrame:
    """bat minus frozen under `strict` on `splits`, for one value of the recipe changed at a time."""
    plain, points = work.profile.recipe, []
    for title, (name, values) in CURVES.items():
        points += [
            (
                title,
                value,
                Rung("bat", recipe=() if getattr(plain, name) == value else ((name, value),)),
            )
            for value in values
        ]
    points += [("pseudo-labels k", "leiden", Rung("bat", recipe=(("k", 64), ("labels", "leiden"))))]
    for kd in LAMBDAS:
        weights = (("lambda_kd", kd), ("lambda_struct", 1.0 - kd))
        points.append(("weight of L_KD (L_struct has the rest)", kd, Rung("bat", recipe=weights)))
    for share in SHARES:  # as many steps on fewer patients
        longer = () if share == 1 else (("epochs", round(plain.epochs / share)),)
        points.append(
            (
                "share of training patients, same steps",
                share,
                Rung("bat", recipe=longer, share=share),
            )
        )
    return _against_frozen(work, points, splits)


def recipes(work: Run, splits: Sequence[str]) -> pd.DataFrame:
    """minus frozen under `strict`: the profile's recipe, each switch between paper and code by itself, and both as a whole.

    In encoder space; the whole recipes in projected space too, which is what paper and code hand to the head. They keep their
    epochs and rates; block and rank are the profile's, since 256 does not divide `mini`.
    """
    base, size = work.profile.recipe, ("block", "rank", "alpha")
    points = [("the profile's recipe", Rung("bat"))] + list(SWITCHES.items())
    for name, method in (("as_written", "bat"), ("as_run", "bone")):
        whole = replace(RECIPES[name], **{field: getattr(base, field) for field in size})
        changes = tuple(sorted(asdict(whole).items() - asdict(base).items()))
        points += [
            (f"{name}, whole ({space})", Rung(method, space, recipe=changes))
            for space in ("encoder", "projected")
        ]
    return _against_frozen(work, [("recipe", name, rung) for name, rung in points], splits)


def cue_shares(work: Run, splits: Sequence[str]) -> pd.DataFrame:
    """bat minus frozen on the same tissue, with 0, a quarter, ... of the cue genes' law hidden from the frozen encoder."""
    worlds = {0.0: OFF} | {s: hidden_cues(s) for s in (0.25, 0.5, 0.75)} | {1.0: OWN}
    points = [
        ("share of the cues that is hidden", share, Rung("bat"), world)
        for share, world in worlds.items()
    ]
    return _against_frozen(work, points, splits)


def alphas(work: Run, splits: Sequence[str]) -> pd.DataFrame:
    """bat minus frozen under `strict` at one fixed penalty of the head after the other: a bad one fakes a win."""
    strict, rows = PROTOCOLS["strict"], []
    for alpha in ALPHAS:
        fixed = replace(strict, name="strict_fixed_alpha", alphas=(alpha,))
        tasks = [
            replace(task, protocol=fixed)
            for task in work.tasks(strict)
            if task.split.name in splits
        ]
        score = lambda rung: (
            evaluate(
                work.cohort(),
                {t.split.name: stages.space_of(work, rung, t.split.name) for t in tasks},
                fixed,
                tasks,
            ).scores
        )
        frozen, bat = score("frozen"), score("bat")
        level = (
            frozen.query("pooling == 'section' and genes == 'all'")
            .groupby("patient")["pcc"]
            .mean()
            .mean()
        )
        rows.append({"alpha": alpha, "frozen": level, **_without_values(paired(bat, frozen))})
    made = _made_with(work, ("frozen", "bat"), splits)
    return _named(work, pd.DataFrame(rows)).assign(
        protocol="strict, alpha fixed", split=",".join(splits), **made
    )


def forgetting(work: Run, splits: Sequence[str] = ()) -> pd.DataFrame:
    """The drawn tissue type read from features of held-out patients: balanced accuracy of each rung, and minus frozen.

    A logistic regression on standardised features, fitted on the split's training spots. No alignment was told the
    type, so this is what adapting the encoder to counts did to something else that it knew.
    """
    known = PROTOCOLS["strict"].splits(work.cohort())
    scored = [split for split in known if not splits or split.name in splits]
    rungs = {"frozen encoder": "frozen"} | {
        r.name: r for r in work.profile.ladder if isinstance(r, Rung) and r.space == "encoder"
    }
    rungs |= {"random encoder": "random"}
    found = {
        label: _type_accuracy(work, rung, scored)
        for label, rung in tqdm(rungs.items(), desc="forgetting")
    }
    rows = []
    for label, accuracy in found.items():
        change = (
            over_patients(accuracy - found["frozen encoder"]) if label != "frozen encoder" else {}
        )
        rows.append(
            {"label": label, "balanced_accuracy": accuracy.mean(), "n": len(accuracy)} | change
        )
    made = _made_with(work, rungs.values(), [split.name for split in scored])
    return _named(work, pd.DataFrame(rows)).assign(
        task="tissue_type", splits=",".join(splits) or "all", **made
    )


def _made_with(work: Run, rungs, splits) -> dict[str, str]:
    """What made numbers that this process computes from the features of some rungs on some splits (`tables.made_by`)."""
    return tables.made_by(
        work,
        *(stages.features(work, rung, split).uns["made"] for rung in rungs for split in splits),
    )


def _type_accuracy(work: Run, rung: Rung | str, splits: list) -> pd.Series:
    """Balanced accuracy of the tissue type, by held-out patient."""
    obs, values = work.cohort().obs, {}
    kind, group = obs["tissue_type"].to_numpy(), obs["group"].to_numpy()
    for split in splits:
        x = stages.space_of(work, rung, split.name)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        model.fit(x[split.train], kind[split.train])
        said = model.predict(x[split.test])
        for patient in np.unique(group[split.test]):
            here = group[split.test] == patient
            true = kind[split.test][here]
            values[patient] = recall_score(
                true, said[here], labels=np.unique(true), average="macro"
            )
    return pd.Series(values)


def _against_frozen(work: Run, points: list, splits: Sequence[str]) -> pd.DataFrame:
    """bat minus frozen for (curve, value, rung[, world]), all, cue and composition genes."""
    rows = []
    for curve, value, rung, *world in tqdm(points, desc="curves", unit="point"):
        there = work.at(world[0]) if world else work
        table = tables.difference_table(
            there, PROTOCOLS["strict"], [("student", rung)], splits=splits
        )
        rows.append(
            table.drop(columns=["label", "rung", "predictor", "values"]).assign(
                curve=curve, value=str(value)
            )
        )
    return _named(work, pd.concat(rows, ignore_index=True)).assign(
        protocol="strict", scope="nested", split=",".join(splits)
    )


def _without_values(found: dict) -> dict:
    return {key: value for key, value in found.items() if key != "values"}


def _named(work: Run, table: pd.DataFrame) -> pd.DataFrame:
    """The table with what its numbers depend on."""
    return table.assign(
        profile=work.profile.name,
        cohort=work.cohort().digest[:12],
        encoder=work.encoder_name(),
        seed=work.profile.seed,
    )


STUDIES: dict[
    str, tuple[Callable[[Run, Sequence[str]], pd.DataFrame], int | None]
] = {  # name: study, on how many splits
    "ladder": (ladder, None),
    "ladder_scope": (lambda work, splits: scope_effects(work), None),
    "ladder_curves": (curves, 1),
    "ladder_recipes": (recipes, 2),
    "ladder_cues": (cue_shares, 2),
    "ladder_alpha": (alphas, 2),
    "ladder_forgetting": (forgetting, None),
}
DRAWN_ONLY = ("ladder_cues", "ladder_forgetting")
