"""What predictions of a slide say about how far to trust them, in sentences and for one gene."""

import json

import anndata as ad
import numpy as np
import pandas as pd

from ..unfamiliar import SLIDE_SHARE

NOT_FOR_DIAGNOSIS = "For research only. Not for diagnosis."


def trust_sentences(found: ad.AnnData) -> list[str]:
    """Sentences on the slide as a whole, from the predictions of `prediction.predict_slide`."""
    warnings = found.uns["peka"]["warnings"].splitlines()
    return [*_unfamiliar(found), _genes(found.var), *warnings, NOT_FOR_DIAGNOSIS]


def _unfamiliar(found: ad.AnnData) -> list[str]:
    share, n = found.uns["peka"]["share_unfamiliar"], found.n_obs
    if np.isnan(share):
        why = "this model has no threshold, because nothing could be held out to measure it"
        return [f"No tile can be flagged as unfamiliar: {why}."]
    first = (
        f"{_percent(share)} of the {n:,} tiles are unfamiliar: they lie farther from the training "
        f"tiles than 95 % of the tiles of held-out {_unit(found.var)} do. So 5 % would be usual."
    )
    if share > SLIDE_SHARE:
        first += (
            " More than half are, so this slide as a whole is unfamiliar: what is expected of a "
            "gene was not measured on tissue like this."
        )
    return [first, "Unfamiliar does not mean wrong: the distance did not predict the error."]


def _genes(genes: pd.DataFrame) -> str:
    good, n = genes["supported"].astype(bool), len(genes)
    certain = "low" in genes and np.isfinite(genes["low"]).any()
    than = f"predicted better than by tile colour and the mean{_held_out(genes)}"
    than += ", with 95 % intervals" if certain else ", on average and without an interval"
    if not good.any():
        return f"No gene is supported: none of {n} was {than}. So all maps are grey."
    score = number(genes.loc[good, "pcc"].mean())
    rest = f" The other {n - good.sum()} are grey." if n > good.sum() else ""
    return (
        f"{good.sum()} of {n} genes are supported: {than}. Their mean PCC there was {score}.{rest}"
    )


def _held_out(genes: pd.DataFrame) -> str:
    """` in 4 held-out patients`; nothing if the table has no number."""
    n = genes["n"].max() if "n" in genes else np.nan
    return f" in {int(n)} held-out {_unit(genes)}" if np.isfinite(n) else ""


def _unit(genes: pd.DataFrame) -> str:
    """What was held out: patients, or sections of one patient."""
    return f"{genes['unit'].iloc[0]}s" if "unit" in genes else "patients"


def gene_caption(gene: pd.Series) -> str:
    """The expected PCC of one gene with its interval, and the reason if the gene is greyed."""
    if pd.isna(gene["pcc"]):
        return "expected PCC unknown"
    text = f"expected PCC {number(gene['pcc'])}"
    if np.isfinite(gene.get("low", np.nan)) and np.isfinite(gene.get("high", np.nan)):
        text += f" (95 % interval {number(gene['low'])} to {number(gene['high'])})"
    if not gene["supported"]:
        colour = gene.get("pcc_colour", np.nan)
        beside = f", tile colour {number(colour)}" if np.isfinite(colour) else ""
        text += f"{beside}: not supported"
    return text


def number(value: float) -> str:
    """`.12` and `−.05`: a correlation with two decimals."""
    text = f"{abs(value):.2f}".removeprefix("0")
    return f"−{text}" if value < 0 and float(text) else text


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share == 0 or share >= 0.01 else "Less than 1 %"


def about_model(found: ad.AnnData) -> list[str]:
    """Sentences on the model and its slide, from the model's card."""
    about = found.uns["peka"]
    card = json.loads(about["card"])
    cohort, encoder = card.get("cohort"), card.get("encoder")
    facts = {
        "Model": about["model"][:12],
        "cohort": cohort.get("name") if isinstance(cohort, dict) else cohort,
        "encoder": encoder.get("name") if isinstance(encoder, dict) else encoder,
        "method": card.get("method"),
        "protocol": card.get("protocol"),
    }
    first = ", ".join(f"{name} {fact}" for name, fact in facts.items() if fact)
    why = about["no_interval"]
    none = [f"No interval is given for a gene's mean, because {why}"] if why else []
    licences = [f"Licence of the {name}: {text}" for name, text in card.get("licences", {}).items()]
    slide = f"Slide: sha256 {about['slide_sha256'][:12]}, {about['um_per_px']:.4g} µm per px"
    lines = [first, *card.get("notes", []), *none, *licences, slide]
    return [f"{line.rstrip('.')}." for line in lines]
