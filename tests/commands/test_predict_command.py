"""`peka predict` from the words of the command line to the files, with the encoder `mini`."""

import argparse

import anndata as ad
import cv2
import numpy as np
import pandas as pd
import pytest
from fake_slide import drawn_slide

from peka_core.commands.predict_command import add_predict
from peka_core.common.errors import PekaError
from peka_core.encoders import load_encoder
from peka_core.head import fit_head
from peka_core.studies.model_folder import save_model
from peka_core.tiles import cut_tiles
from peka_core.unfamiliar import fit_familiar


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with a drawn slide of unknown pixel size and a model of `mini`."""
    folder = tmp_path_factory.mktemp("predict")
    pixels = drawn_slide(folder / "slide.png")
    encoder = load_encoder("mini", device="cpu")
    centres = np.random.default_rng(0).uniform(200, 600, (24, 2))
    tiles, _ = cut_tiles(pixels, centres, 1.0)
    x, y = encoder.embed(tiles), tiles.mean((1, 2))[:, :2]  # (n, d), (n, 2)
    genes = pd.DataFrame({"pcc": [0.5, 0.1], "supported": [True, False]}, index=["RED", "GREEN"])
    card = {"space": "encoder", "threshold": 50.0, "um_per_px": [0.5, 1.0], "cohort": "drawn"}
    familiar = fit_familiar(x)
    save_model(folder / "model", encoder, fit_head(x, y), 1.0, genes, familiar, card, str)
    return folder, encoder


def peka(*words):
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()

    def command(name, function, text):
        found = commands.add_parser(name, help=text)
        found.set_defaults(command=function)
        return found

    add_predict(command)
    arguments = parser.parse_args(["predict", *map(str, words)])
    return arguments.command(arguments)


def test_a_slide_is_predicted_by_one_command(drawn, tmp_path, capsys):
    folder, encoder = drawn
    words = "--model", folder / "model", "--slide", folder / "slide.png", "--out", tmp_path / "out"
    assert not peka(*words, "--um-per-px", "1", "--device", "cpu")
    found = ad.read_h5ad(tmp_path / "out/predictions.h5ad")
    pixels = cv2.imread(str(folder / "slide.png"))[..., ::-1]
    tiles, _ = cut_tiles(pixels, found.obsm["spatial"], 1.0)
    np.testing.assert_allclose(found.obsm["X_features"], encoder.embed(tiles), atol=1e-5)
    printed = capsys.readouterr().out
    assert "index.html" in printed and "Not for diagnosis" in printed


@pytest.mark.parametrize("words, named", [
    ([], "--um-per-px"),
    (["--um-per-px", "0"], "um"),
    (["--um-per-px", "1", "--spots", "none.csv"], r"none\.csv"),
    (["--um-per-px", "1", "--mask", "none.json"], r"none\.json"),
    (["--um-per-px", "1", "--weights", "uni=file"], "uni=file"),
    (["--um-per-px", "1", "--device", "tpu"], "tpu"),
    (["--um-per-px", "1", "--encoder", "random"], "random"),
    (["--um-per-px", "1", "--model", "nothing"], "nothing"),
    (["--um-per-px", "1", "--slide", "nothing.svs"], r"nothing\.svs"),
])  # fmt: skip
def test_what_is_missing_is_named_and_no_folder_appears(drawn, tmp_path, words, named):
    folder, _ = drawn
    first = "--model", folder / "model", "--slide", folder / "slide.png", "--out", tmp_path / "out"
    with pytest.raises(PekaError, match=named):
        peka(*first, *words)
    assert not (tmp_path / "out").exists()
