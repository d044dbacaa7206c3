"""A model folder: it predicts what its parts predict; a damaged or foreign one is refused."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from fake_cohort import sklearn_head
from test_encoders import smooth_tiles, tiny_encoder
from test_student import RECIPE, student_of

from peka_core.common import files
from peka_core.common.errors import PekaError
from peka_core.common.files import sha256
from peka_core.head import fit_head
from peka_core.predict import load_model
from peka_core.student import embed_tiles
from peka_core.studies.model_folder import save_model
from peka_core.unfamiliar import fit_familiar

TILES, NAMES = smooth_tiles(24, 64), ["NA", "7", "MT-CO1"]
TARGETS = np.random.default_rng(0).normal(size=(24, 3)) + 2
GENES = pd.DataFrame(
    {"pcc": [0.1, np.nan, 0.3], "unit": "patient", "supported": [True, False, True]}, index=NAMES
)
CARD = {"space": "projected", "threshold": 2.5, "um_per_px": [0.25, 0.5], "cohort": "drawn"}


def encoder(**facts):
    return tiny_encoder(64, **{"digest": "aaaa"} | facts)


def save(folder, method="bat", **card):
    """A model folder, the features behind it, and those of the frozen encoder."""
    network = encoder() if method == "none" else student_of(encoder(), method, RECIPE)
    card = CARD | {"space": "encoder" if method == "none" else "projected"} | card
    x = embed_tiles(network, TILES, progress=False)[card["space"]]
    frozen = embed_tiles(encoder(), TILES, progress=False)["encoder"]
    parts = fit_head(x, TARGETS), 2.0, GENES, fit_familiar(frozen)
    save_model(folder, network, *parts, card, lambda card: f"# {card['cohort']}\n")
    return x, frozen


@pytest.mark.parametrize("method", ["bat", "none"])
def test_a_model_from_its_folder_predicts_what_its_parts_predict(tmp_path, method):
    x, frozen = save(tmp_path / "model", method)
    assert (tmp_path / "model/student").exists() == (method == "bat")
    model = load_model(tmp_path / "model", encoder=encoder())
    features = model.embed(TILES)
    np.testing.assert_allclose(features, x, atol=1e-5)
    expected = sklearn_head(x, TARGETS, x, alpha=2.0)
    assert model.predict(features).dtype == np.float32
    np.testing.assert_allclose(model.predict(features), expected, atol=1e-4)
    np.testing.assert_allclose(model.frozen(TILES, features), frozen, atol=1e-5)
    expected = fit_familiar(frozen).distance(frozen)
    np.testing.assert_allclose(model.distance(frozen), expected, rtol=1e-3)
    pd.testing.assert_frame_equal(model.genes, GENES.rename_axis("gene"))
    assert model.threshold == 2.5 and model.um_per_px_range == (0.25, 0.5)
    assert model.digest == sha256(tmp_path / "model/card.json")
    assert (tmp_path / "model/README.md").read_text() == "# drawn\n"


def test_what_could_not_be_measured_is_nan_and_raises_no_flag(tmp_path):
    save(tmp_path / "model", threshold=np.nan, um_per_px=None)
    model = load_model(tmp_path / "model", encoder=encoder())
    frozen = model.frozen(TILES, model.embed(TILES))
    assert np.isnan(model.threshold) and not (model.distance(frozen) > model.threshold).any()
    assert np.isnan(model.um_per_px_range).all() and model.scale_warning(9.0) == ""


def test_only_much_coarser_pixels_than_those_of_training_give_a_warning(tmp_path):
    save(tmp_path / "model")
    model = load_model(tmp_path / "model", encoder=encoder())
    assert [bool(model.scale_warning(um)) for um in (0.1, 0.5, 0.75, 0.76)] == [0, 0, 0, 1]


@pytest.mark.parametrize("name", [
    "head.safetensors", "genes.csv", "familiar.safetensors", "student/adapter.safetensors",
    "student/projector.safetensors", "student/card.json", "card.json",
])  # fmt: skip
def test_a_missing_or_changed_file_is_named(tmp_path, name):
    save(tmp_path / "model")
    for change in ("flip", "cut", "gone"):
        path = shutil.copytree(tmp_path / "model", tmp_path / change) / name
        data = path.read_bytes()
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:] if change == "flip" else data[:-9])
        if change == "gone":
            path.unlink()
        with pytest.raises(PekaError, match=name):
            load_model(tmp_path / change, encoder=encoder())


@pytest.mark.parametrize(("change", "word"), [
    ({"format": 2}, "format 2"),
    ({"space": None}, "space"),
    ({"sha256": {}}, "genes.csv"),
    ({"threshold": 1e9}, "card.json was changed"),
])  # fmt: skip
def test_a_card_of_another_format_or_without_what_is_needed_is_refused(tmp_path, change, word):
    save(tmp_path / "model")
    path = tmp_path / "model/card.json"
    card = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: v for name, v in card.items() if v is not None}))
    with pytest.raises(PekaError, match=word):
        load_model(tmp_path / "model", encoder=encoder())


@pytest.mark.parametrize("method", ["bat", "none"])
@pytest.mark.parametrize("facts", [
    {"name": "other"}, {"digest": "bbbb"}, {"mean": (0.5, 0.5, 0.5)}, {"interpolation": "bicubic"}
])  # fmt: skip
def test_another_encoder_other_weights_and_other_input_settings_are_refused(
    tmp_path, method, facts
):
    save(tmp_path / "model", method)
    with pytest.raises(PekaError, match=rf"model.*{next(iter(facts))}"):
        load_model(tmp_path / "model", encoder=encoder(**facts))
    load_model(tmp_path / "model", encoder=encoder(precision="bfloat16"))  # rounding only


def test_a_folder_is_written_whole_or_not_at_all_and_never_over_another(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    save(tmp_path / "model")  # an empty folder may be there
    before = sha256(tmp_path / "model/card.json")
    with pytest.raises(PekaError, match="model"):
        save(tmp_path / "model", cohort="another")
    assert sha256(tmp_path / "model/card.json") == before

    def full(*arguments):
        raise OSError(28, "No space left on device", str(tmp_path / "new"))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(PekaError, match="new"):
        save(tmp_path / "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(PekaError, match="file takes"):
        save(tmp_path / "file/new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model"]


def test_the_penalty_is_in_the_saved_coefficients(tmp_path):
    x, _ = save(tmp_path / "model", "none")
    model, head = load_model(tmp_path / "model", encoder=encoder()), fit_head(x, TARGETS)
    np.testing.assert_allclose(model.head.predict(x, 0.0), head.predict(x, 2.0), atol=1e-4)
    assert not np.allclose(head.predict(x, 0.0), head.predict(x, 2.0), atol=1e-2)
