"""Write a model folder, which `predict.load_model` reads, whole or not at all."""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from ..common.errors import PekaError
from ..common.files import TEMPORARY, sha256, told_when_full, write_json, write_whole
from ..encoders import Encoder
from ..head import Head
from ..predict import CARD, FAMILIAR, FORMAT, GENES, HEAD, README, card_digest, encoder_facts
from ..student import Student
from ..unfamiliar import Familiar


def save_model(
    folder: str | Path,
    network: Student | Encoder,
    head: Head,
    alpha: float,
    genes: pd.DataFrame,
    familiar: Familiar,
    card: dict,
    readme: Callable[[dict], str],
) -> Path:
    """Write a model folder, whole or not at all.

    Args:
        folder: it does not exist yet, or it is empty.
        network: the student, or the frozen encoder.
        head, alpha: a fitted head and its ridge penalty; the folder gets float32.
        genes: as in `Model`, in the order of the head.
        card: what card.json says, with space, threshold and um_per_px. The encoder's facts, the
            method and the digests are added.
        readme: makes the text of README.md from the finished card.

    Raises:
        PekaError: the folder holds files already, or it cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    check_free(folder)
    temporary = folder.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{folder.name}")
    try:
        with told_when_full(folder):
            temporary.mkdir(parents=True)
            if isinstance(network, Student) and network.method != "none":
                network.save(temporary / "student", {"split": card.get("split", "")})
            _save_arrays(temporary / HEAD, _head_arrays(head, alpha))
            _save_arrays(temporary / FAMILIAR, vars(familiar))
            write_whole(temporary / GENES, lambda path: genes.to_csv(path, index_label="gene"))
            write_card(temporary, network, card, readme)
            if folder.exists():
                folder.rmdir()  # it is empty; Windows does not replace a folder
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def check_free(folder: str | Path) -> None:
    """Refuse a place for a new model that holds files, that is a file, or that takes no files."""
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise PekaError(
            f"{folder} exists and is not empty. A model is written into a new folder, so that "
            "nothing is lost: choose another --out."
        )
    above = next(parent for parent in folder.parents if parent.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise PekaError(f"{folder}: {above} takes no new files. Choose another --out.")


def write_card(
    folder: Path, network: Student | Encoder, card: dict, readme: Callable[[dict], str]
) -> None:
    """Write card.json, with the digests of the files that are there, and README.md."""
    encoder = network if isinstance(network, Encoder) else network.encoder
    method = "none" if isinstance(network, Encoder) else network.method
    facts = {"format": FORMAT, "method": method, "encoder": encoder_facts(encoder)}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    write_json(folder / CARD, card | facts | {"sha256": digests})
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))  # with null for NaN
    write_json(folder / CARD, card | {"digest": card_digest(card)})
    text = readme(card)
    write_whole(folder / README, lambda path: path.write_text(text, encoding="utf-8"))


def _head_arrays(head: Head, alpha: float) -> dict[str, np.ndarray]:
    """The head's arrays, with the ridge penalty in the coefficients (k, g)."""
    coefficients = head.products / (head.squared_singular + alpha)[:, None]  # (k, g)
    names = {"mean": head.mean, "scale": head.scale, "components": head.components}
    return names | {"coefficients": coefficients, "intercept": head.intercept}


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as float32 into a safetensors file."""
    plain = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    write_whole(path, lambda file: save_file(plain, file))
