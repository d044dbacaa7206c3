"""Encoders: the transform against timm's, weights read or refused, and encoders of one's own."""

import re

import numpy as np
import pytest
import timm
import torch
from conftest import SMALL
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform
from timm.models.vision_transformer import VisionTransformer

from peka_core import encoders
from peka_core.common import device, folders
from peka_core.common.device import autocast
from peka_core.common.errors import PekaError
from peka_core.common.files import sha256
from peka_core.encoders import Encoder, load_encoder
from peka_core.runner import stages
from peka_core.runner.profile import load_profile
from peka_core.runner.run import open_run


def tiny_encoder(size=224, **facts):
    torch.manual_seed(0)
    shape = {"img_size": size, "patch_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = VisionTransformer(**shape, num_classes=0).eval().requires_grad_(False)
    facts = {"name": "tiny", "dim": 32, "size": size, "resize": size} | facts
    return Encoder(**{"model": model, "mean": (0.7, 0.5, 0.8), "std": (0.2, 0.3, 0.1)} | facts)


def smooth_tiles(n, side=224, seed=0):
    """Tiles with structure at many scales, as uint8."""
    x = torch.rand(n, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(seed))
    x = torch.nn.functional.interpolate(x, size=(side, side), mode="bilinear")
    return (x.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def test_embed_normalises_each_colour_then_encodes_whatever_the_batch_or_view():
    encoder, tiles = tiny_encoder(), smooth_tiles(5)
    expected = (tiles / 255 - np.array(encoder.mean)) / np.array(encoder.std)
    x = encoder.transform(tiles)
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x, expected.transpose(0, 3, 1, 2), atol=1e-5)
    assert encoder.transform(tiles, torch.bfloat16).sub(x).abs().max() < 0.02
    features = encoder.embed(tiles, batch_size=2)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, encoder.model(x), atol=1e-5)
    turned = tiles[:, ::-1, ::-1], tiles[..., ::-1], tiles.transpose(0, 2, 1, 3)
    for view in (*turned, list(tiles)):
        np.testing.assert_array_equal(encoder.embed(view), encoder.embed(np.array(view)))
    with pytest.raises(PekaError, match="uint8"):
        encoder.embed(tiles / np.float32(255))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("side", "crop_pct", "resize"), [(256, 1.0, 224), (299, 0.9, 248)])
def test_resize_and_crop_equal_timm(interpolation, side, crop_pct, resize):
    encoder, tiles = tiny_encoder(resize=resize, interpolation=interpolation), smooth_tiles(2, side)
    tiles[1] = 255 * (np.arange(side)[:, None] % 16 < 2)  # where bicubic leaves the range
    how = {"interpolation": interpolation, "mean": encoder.mean, "std": encoder.std}
    theirs = create_transform(224, crop_pct=crop_pct, **how)
    expected = torch.stack([theirs(Image.fromarray(tile)) for tile in tiles])
    step = 1 / 255 / torch.tensor(encoder.std).view(3, 1, 1)  # PIL rounds to whole grey levels
    assert ((encoder.transform(tiles) - expected).abs() <= 1.1 * step).all()


@pytest.mark.parametrize("has", [True, False])
def test_the_precision_of_the_encoder_is_used_where_the_device_has_it(monkeypatch, has):
    monkeypatch.setattr(device, "has_bfloat16", lambda device: has)
    exact, rounded = tiny_encoder(), tiny_encoder(precision="bfloat16")
    difference = np.abs(exact.embed(tiles := smooth_tiles(3)) - rounded.embed(tiles)).max()
    assert 1e-4 < difference < 0.1 if has else difference == 0


def test_float32_on_a_gpu_is_float32(monkeypatch):
    """cuDNN may not round to TF32 meanwhile; `mini` stays in float32, though a transformer."""
    with autocast("cuda", "float32"):
        assert torch.backends.cudnn.enabled and not torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(encoders, "has_bfloat16", lambda device: True)
    on = lambda place, name: encoders.precision_on(place, name, tiny_encoder().model)
    assert [on("cuda", name) for name in ("mini", "random")] == ["float32"] * 2
    assert (on("cuda", "uni"), on("cpu", "uni")) == ("bfloat16", "float32")


def test_embedding_halves_a_batch_that_does_not_fit(monkeypatch):
    tiny, tiles, encode = tiny_encoder(), smooth_tiles(7), Encoder.encode
    whole = tiny.embed(tiles)

    def small_device(self, x, *arguments):
        if len(x) > 2:
            raise torch.OutOfMemoryError
        return encode(self, x, *arguments)

    monkeypatch.setattr(Encoder, "encode", small_device)
    np.testing.assert_allclose(tiny.embed(tiles, batch_size=7), whole, atol=1e-5)


def test_mini_is_frozen_and_random_is_its_network_drawn_from_the_seed():
    state, mini = torch.random.get_rng_state(), load_encoder("mini", device="cpu")
    first, again, other = (load_encoder("random", device="cpu", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(p.requires_grad for p in mini.model.parameters()) and not mini.model.training
    assert mini.digest != first.digest == again.digest != other.digest
    np.testing.assert_array_equal(first.embed(tiles := smooth_tiles(3)), again.embed(tiles))


def test_a_timm_model_takes_local_weights_that_fit_and_no_others(tmp_path):
    torch.manual_seed(4)
    state = timm.create_model("resnet10t", num_classes=7).state_dict()  # its head is not needed
    torch.save(state, path := tmp_path / "weights.pth")
    encoder = load_encoder("resnet10t", weights=path, device="cpu")
    first, own = "conv1.0.weight", timm.get_pretrained_cfg("resnet10t")
    assert torch.equal(encoder.model.conv1[0].weight, state[first])
    size, found = own.input_size[-1], (encoder.size, encoder.resize, encoder.interpolation)
    assert found == (size, int(size / own.crop_pct), own.interpolation)
    assert (encoder.digest, encoder.mean, encoder.std) == (sha256(path), own.mean, own.std)
    values = state.pop(first)
    for name, more in (("renamed", {f"stem.{first}": values}), ("short", {first: values[:1]})):
        save_file(state | more, path := tmp_path / f"{name}.safetensors")
        with pytest.raises(PekaError, match=f"{name}.*{first}"):
            load_encoder("resnet10t", weights=path, device="cpu")


OWN = """
import os
import torch
from test_encoders import tiny_encoder

def preprocess(tiles):
    x = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    return torch.nn.functional.interpolate(x, (64, 64)) * 2.0

def network():
    model = tiny_encoder(64).model
    model.norm.weight.data *= float(os.environ.get("SCALE", 1))
    return model

def build():
    return network(), preprocess
"""
NO_ENCODER = {  # words of the refusal: what a function returns
    "not finite": "network(), lambda tiles: preprocess(tiles) * torch.nan",
    "same": "torch.nn.Sequential(network(), torch.nn.Threshold(9e9, 0.0)), preprocess",
    "(2, 8)": "tiny_encoder(64, dim=8)",
}
BUILD = "my_file.py:build"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file with encoders of one's own, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_file.py").write_text(OWN)
    return tmp_path / "my_file.py"


def test_a_file_builds_an_encoder_with_its_own_transform(own):
    encoder, tiles = load_encoder(BUILD, device="cpu"), smooth_tiles(3)
    assert (encoder.name, encoder.dim, encoder.size) == (BUILD, 32, 64)
    x = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    x = torch.nn.functional.interpolate(x, (64, 64)) * 2.0
    assert torch.equal(encoder.transform(tiles), x)
    np.testing.assert_allclose(encoder.embed(tiles), encoder.model(x), atol=1e-5)
    pair = load_encoder((encoder.model, encoder.preprocess), device="cpu")
    np.testing.assert_array_equal(pair.embed(tiles), encoder.embed(tiles))


@pytest.mark.parametrize("words", NO_ENCODER)
def test_what_is_no_encoder_is_refused_with_the_files_name(own, words):
    own.write_text(f"{OWN}\ndef odd():\n    return {NO_ENCODER[words]}\n")
    with pytest.raises(PekaError, match=f"my_file.py.*{re.escape(words)}"):
        load_encoder("my_file.py:odd", device="cpu")


def test_a_run_embeds_with_it_and_an_edit_of_transform_or_weights_makes_new_units(own, monkeypatch):
    monkeypatch.setattr(folders, "root", lambda: own.parent)
    (own.parent / "mine.yaml").write_text(f"base: smoke\nencoder: {BUILD}\n")
    assert load_profile("smoke", {"encoder": BUILD}).encoder == f"{own}:build"
    names, features = [], []
    for factor, scale in (("2.0", "1"), ("3.0", "1"), ("3.0", "2")):
        own.write_text(OWN.replace("2.0", factor))
        monkeypatch.setenv("SCALE", scale)  # other weights from the same code
        work = open_run("mine.yaml", "mine", "cpu", {}, SMALL)
        names.append(work.encoder_name())
        features.append(stages.features(work, "frozen").obsm["X_encoder"])
    assert work.profile.encoder == f"{own}:build"
    assert all(name.startswith(f"{BUILD}@") for name in names) and len(set(names)) == 3
    assert len({x.tobytes() for x in features}) == 3
    assert stages.features(work, "bat", "patients/0").obsm["X_encoder"].shape == features[0].shape
