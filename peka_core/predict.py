"""A model as a folder: load it, check it, and predict genes on tiles.

    student/               adapter, projector and their card; absent if the encoder is frozen
    head.safetensors       the regression: scaler, PCA, ridge coefficients, intercept
    genes.csv              one row a gene, with its expected PCC
    familiar.safetensors   mean and covariance of the training tiles' frozen features
    card.json              what the model is, and the sha256 of the files above
    README.md              the card for people

`peka export` writes such a folder (studies/model_folder.py). It never holds the encoder's own
weights.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from .common.errors import PekaError
from .common.files import sha256
from .common.progress import say_once
from .encoders import Encoder, load_encoder
from .head import Head
from .student import Student, embed_tiles
from .unfamiliar import Familiar

FORMAT = 1  # of the folder; a later format gets another number
HEAD, GENES, FAMILIAR, CARD, README = (
    "head.safetensors", "genes.csv", "familiar.safetensors", "card.json", "README.md"
)  # fmt: skip
STUDENT = ("student/adapter.safetensors", "student/card.json", "student/projector.safetensors")
ON_CARD = ("encoder", "method", "space", "threshold", "um_per_px", "sha256")  # read by this file
SETTINGS = ("mean", "std", "dim", "size", "resize", "interpolation", "pool")  # of an encoder
COARSER = 1.5  # a slide whose pixels are larger by more than this factor gets a warning


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model folder.

    Attributes:
        folder: where it is.
        card: cohort, patients, protocol, encoder, method, space, scores, digests, licences …
        genes: index gene; pcc: expected PCC, the mean over n held-out patients (`unit` says if they
            are sections instead); low, high: its 95 % t interval, NaN with fewer than three
            patients; pcc_colour: that of tile colour; minus_colour, minus_colour_low: mean paired
            difference to it and the low end of its interval; supported: whether the PCC is above 0
            and above that of tile colour (`studies.expected.gene_table` has the rule);
            mean_half_width_80: half width of the 80 % interval for the mean over a slide, NaN if
            there is none.
        digest: sha256 of card.json, which holds the digests of all other files.
        network: the student, or the frozen encoder.
        encoder: the frozen encoder.
        head: predicts from features.
        familiar: measures distances to the training tiles, in features of the frozen encoder.
    """

    folder: Path
    card: dict
    genes: pd.DataFrame
    digest: str
    network: Student | Encoder
    encoder: Encoder
    head: Head
    familiar: Familiar

    @property
    def threshold(self) -> float:
        """Distance beyond which a tile is unfamiliar; NaN if it could not be measured."""
        found = self.card["threshold"]
        return np.nan if found is None else float(found)

    @property
    def um_per_px_range(self) -> tuple[float, float]:
        """Smallest and largest pixel size (um) of the training slides; NaN if it is unknown."""
        low, high = self.card["um_per_px"] or (np.nan, np.nan)
        return float(low), float(high)

    def scale_warning(self, um_per_px: float) -> str:
        """A sentence if a slide's pixels are much coarser than those of training, else empty.

        Tiles of any slide cover 112 um. Those of a coarser slide are enlarged, so they are blurred
        in a way that the model has not seen.
        """
        largest = self.um_per_px_range[1]
        if not um_per_px > COARSER * largest:
            return ""
        return (
            f"This slide has {um_per_px:.3g} um per px. The slides of training had at most "
            f"{largest:.3g}. Its tiles are enlarged more, and so less sharp, than any in training."
        )

    def embed(self, tiles: Any, batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Features float32 (n, d), in the head's space, of tiles uint8 (n, 224, 224, 3)."""
        return embed_tiles(self.network, tiles, batch_size, progress)[self.card["space"]]

    def predict(self, features: np.ndarray) -> np.ndarray:
        """ln CP10K of each gene, float32 (n, g), from features (n, d)."""
        return self.head.predict(features, alpha=0.0).astype(np.float32)

    def frozen(self, tiles: Any, features: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Features float32 (n, d) of the frozen encoder, which `distance` takes.

        An aligned student is no judge of unfamiliar tiles: its training pulls unlike tiles
        together. On her2st, the frozen encoder flagged .59 of another patient's tiles, and the
        student .05.

        Args:
            tiles: uint8 (n, 224, 224, 3).
            features: what `embed` gave for them; returned if the encoder is frozen.
        """
        if self.network is self.encoder:
            return features
        return embed_tiles(self.encoder, tiles, batch_size, progress=False)["encoder"]

    def distance(self, frozen: np.ndarray) -> np.ndarray:
        """Distance (n,) of frozen features (n, d) to training; unfamiliar above `threshold`."""
        return self.familiar.distance(frozen)


def card_digest(card: dict) -> str:
    """sha256 of a card without its own digest, so that an edited card is noticed."""
    rest = {name: value for name, value in card.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def encoder_facts(encoder: Encoder) -> dict:
    """Name, weights and input settings of an encoder, as JSON has them."""
    names = ("name", "digest", "revision", "precision", *SETTINGS)
    return json.loads(json.dumps({name: getattr(encoder, name) for name in names}))


def load_model(
    folder: str | Path,
    device: str = "auto",
    weights: str | Path | None = None,
    encoder: Encoder | str | None = None,
) -> Model:
    """Load a model folder after a check of all its files, and its encoder.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        weights: a local file of the encoder's weights, instead of a download.
        encoder: an encoder that is loaded already, or `FILE.py:FUNCTION` for one of your own; by
            default the encoder of the card's name.

    Raises:
        PekaError: a file is missing, damaged or of another format, or the encoder or its weights
            are not those of the model.
    """
    folder = Path(folder)
    card = read_card(folder)
    if not isinstance(encoder, Encoder):
        encoder = load_encoder(encoder or card["encoder"]["name"], weights, device)
    check_encoder(folder, card, encoder)
    network: Student | Encoder = encoder
    if card["method"] != "none":
        network = Student.load(folder / "student", encoder)
    head = _read_head(load_file(folder / HEAD))
    familiar = Familiar(**load_file(folder / FAMILIAR))
    digest = sha256(folder / CARD)
    genes = _read_genes(folder / GENES)
    return Model(folder, card, genes, digest, network, encoder, head, familiar)


def read_card(folder: str | Path) -> dict:
    """The card of a model folder, after a check of its format and of every file's digest.

    Raises:
        PekaError: there is no model, it has another format, or a file is missing or has changed.
    """
    folder, path = Path(folder), Path(folder) / CARD
    if not path.is_file():
        raise PekaError(f"{path} is missing; expected a model folder, as `peka export` writes it")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        found = card["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise PekaError(f"{path} is damaged or no model's card ({error}); get it again") from error
    if found != FORMAT:
        raise PekaError(
            f"{path} has format {found}, and this version reads format {FORMAT}. Use the version "
            f"of peka_core that wrote it ({card.get('made', {}).get('peka_core', 'unknown')})."
        )
    if missing := [name for name in ON_CARD if name not in card]:
        raise PekaError(f"{path} lacks {', '.join(missing)}; get the folder again")
    _check_files(folder, card)
    if card.get("digest") != card_digest(card):
        raise PekaError(
            f"{path} was changed after the model was written: its digest is another. Get the "
            "folder again, or export it again."
        )
    return card


def _check_files(folder: Path, card: dict) -> None:
    """Refuse files that are missing or that differ from their digest on the card."""
    needed = {HEAD, GENES, FAMILIAR, *(STUDENT if card["method"] != "none" else ())}
    if needed != set(card["sha256"]):
        odd = sorted(needed ^ set(card["sha256"]))
        raise PekaError(f"{folder / CARD} has no digest, or one too many, of {', '.join(odd)}")
    missing = sorted(name for name in needed if not (folder / name).is_file())
    changed = sorted(needed - set(missing))
    changed = [name for name in changed if sha256(folder / name) != card["sha256"][name]]
    for names, what in ((missing, "missing"), (changed, "other than the card's digest says")):
        if names:
            raise PekaError(
                f"{folder} is no whole model: {', '.join(names)} {what}. Copy or download the "
                "folder again, or export it again."
            )


def check_encoder(folder: Path, card: dict, encoder: Encoder) -> None:
    """Refuse an encoder whose name, weights or input settings differ from those on the card."""
    theirs, ours = card["encoder"], encoder_facts(encoder)
    different = [name for name in ("name", "digest", *SETTINGS) if theirs.get(name) != ours[name]]
    if different:
        name, short = different[0], lambda value: value[:12] if isinstance(value, str) else value
        raise PekaError(
            f"{folder} was made with the encoder {theirs.get('name')!r}, {name} "
            f"{short(theirs.get(name))}; this encoder is {encoder.name!r}, {name} "
            f"{short(ours[name])}. Use the same encoder with the same weights."
        )
    if theirs["precision"] != ours["precision"]:
        say_once(
            f"{folder}: the features of training were computed in {theirs['precision']}, and here "
            f"they are in {ours['precision']}. Predictions differ by rounding.",
            notice=True,
        )


def _read_head(arrays: dict[str, np.ndarray]) -> Head:
    """A head that predicts with `alpha=0`, because its coefficients hold the penalty already."""
    exact = {name: array.astype(np.float64) for name, array in arrays.items()}
    coefficients = exact.pop("coefficients")  # (k, g)
    return Head(**exact, products=coefficients, squared_singular=np.ones(len(coefficients)))


def _read_genes(path: Path) -> pd.DataFrame:
    """genes.csv with text as text: a gene may be called NA or 1."""
    header = pd.read_csv(path, nrows=0).columns
    empty = {column: [""] for column in header if column not in ("gene", "unit")}
    table = pd.read_csv(
        path, dtype={"gene": str, "unit": str}, keep_default_na=False, na_values=empty,
        float_precision="round_trip",
    )  # fmt: skip
    return table.set_index("gene")
