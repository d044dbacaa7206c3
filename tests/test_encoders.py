"""Encoders: the transform against timm's, weights read or refused, and encoders of one's own."""

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
from peka_core.models.encoder_files import check_names
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


def test_transform_normalises_each_colour():
    encoder, tiles = tiny_encoder(), smooth_tiles(6)
    expected = (tiles / 255 - np.array(encoder.mean)) / np.array(encoder.std)
    x = encoder.transform(tiles)
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x, expected.transpose(0, 3, 1, 2), atol=1e-5)
    assert encoder.transform(tiles, torch.bfloat16).sub(x).abs().max() < 0.02


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("side", "crop_pct", "resize"),
    [(224, 0.875, 256), (256, 1.0, 224), (224, 0.95, 235), (299, 0.9, 248)],
)
def test_resize_and_crop_equal_timm(interpolation, side, crop_pct, resize):
    encoder, tiles = tiny_encoder(resize=resize, interpolation=interpolation), smooth_tiles(2, side)
    how = {"interpolation": interpolation, "mean": encoder.mean, "std": encoder.std}
    theirs = create_transform(224, crop_pct=crop_pct, **how)
    expected = torch.stack([theirs(Image.fromarray(tile)) for tile in tiles])
    step = 1 / 255 / torch.tensor(encoder.std).view(3, 1, 1)  # PIL rounds to whole grey levels
    assert ((encoder.transform(tiles) - expected).abs() <= 1.1 * step).all()


def test_bicubic_does_not_leave_the_range_of_colours():
    tiles = np.zeros((1, 224, 224, 3), np.uint8)
    tiles[:, :, ::16] = tiles[:, :, 1::16] = 255
    encoder = tiny_encoder(resize=256, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
    x = encoder.transform(tiles)
    assert x.min() == 0 and x.max() == 1


def test_other_types_and_shapes_are_refused():
    for tiles in (np.zeros((1, 224, 224, 3), np.float32), np.zeros((1, 3, 224, 224), np.uint8)):
        with pytest.raises(PekaError, match="uint8"):
            tiny_encoder().transform(tiles)
    with pytest.raises(PekaError, match="tiny"):
        tiny_encoder().encode(torch.zeros(2, 3, 96, 96))
    with pytest.raises(PekaError, match="tiny"):
        tiny_encoder(resize=None).transform(np.zeros((1, 256, 256, 3), np.uint8))


def test_embed_is_transform_then_encode_whatever_the_batch():
    encoder, tiles = tiny_encoder(), smooth_tiles(5)
    features = encoder.embed(tiles, batch_size=2)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, encoder.encode(encoder.transform(tiles)), atol=1e-5)
    with pytest.raises(PekaError):
        encoder.embed(tiles[:0])


def test_precision_of_the_encoder_is_used_by_embed(monkeypatch):
    monkeypatch.setattr(device, "has_bfloat16", lambda device: True)
    exact = tiny_encoder().embed(smooth_tiles(3))
    rounded = tiny_encoder(precision="bfloat16").embed(smooth_tiles(3))
    assert 1e-4 < np.abs(exact - rounded).max() < 0.1


@pytest.mark.parametrize("has", [True, False])
def test_autocast_does_nothing_where_the_device_lacks_bfloat16(monkeypatch, has):
    monkeypatch.setattr(device, "has_bfloat16", lambda device: has)
    for precision, expected in (("bfloat16", has), ("float32", False)):
        with autocast("cpu", precision):
            assert torch.is_autocast_enabled("cpu") is expected


def test_float32_on_a_gpu_is_float32(monkeypatch):
    """cuDNN may not round to TF32 meanwhile; `mini` stays in float32, though a transformer."""
    before = torch.backends.cudnn.allow_tf32
    with autocast("cuda", "float32"):
        assert torch.backends.cudnn.enabled and not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
    monkeypatch.setattr(encoders, "has_bfloat16", lambda device: True)
    model = load_encoder("mini", device="cpu").model
    found = [encoders.precision_on("cuda", name, model) for name in ("mini", "random", "uni")]
    assert found == ["float32", "float32", "bfloat16"]
    assert encoders.precision_on("cpu", "uni", model) == "float32"


def test_embedding_halves_a_batch_that_does_not_fit(monkeypatch):
    mini, tiles, encode, sizes = load_encoder("mini"), smooth_tiles(7), Encoder.encode, []
    whole = mini.embed(tiles)

    def small_device(self, x):
        sizes.append(len(x))
        if len(x) > room:
            raise torch.OutOfMemoryError
        return encode(self, x)

    monkeypatch.setattr(Encoder, "encode", small_device)
    room = 2
    np.testing.assert_allclose(mini.embed(tiles, batch_size=7), whole, atol=1e-5)
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    room = 0
    with pytest.raises(PekaError, match="cpu"):
        mini.embed(tiles, batch_size=4)


def test_mini_is_frozen_and_random_is_its_network_drawn_from_the_seed():
    state = torch.random.get_rng_state()
    mini = load_encoder("mini", device="cpu")
    first, again, other = (load_encoder("random", device="cpu", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (mini.dim, mini.digest) == (128, sha256(encoders.MINI_WEIGHTS))
    assert not any(p.requires_grad for p in mini.model.parameters()) and not mini.model.training
    assert mini.digest != first.digest == again.digest != other.digest
    shapes = [{k: v.shape for k, v in e.model.state_dict().items()} for e in (mini, first)]
    assert shapes[0] == shapes[1]
    features = first.embed(smooth_tiles(3))
    assert features.shape == (3, 128)
    np.testing.assert_array_equal(features, again.embed(smooth_tiles(3)))


# ---- weights from a file -------------------------------------------------------------------------


@pytest.fixture
def local_resnet(tmp_path):
    torch.manual_seed(4)
    state = timm.create_model("resnet10t", num_classes=7).state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    torch.save(state, tmp_path / "weights.pth")
    return tmp_path, state


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_timm_model_with_local_weights(local_resnet, suffix):
    path, state = local_resnet[0] / f"weights.{suffix}", local_resnet[1]
    encoder = load_encoder("resnet10t", weights=path, device="cpu")
    assert torch.equal(encoder.model.conv1[0].weight, state["conv1.0.weight"])
    own = timm.get_pretrained_cfg("resnet10t")
    size, found = own.input_size[-1], (encoder.size, encoder.resize, encoder.interpolation)
    assert found == (size, int(size / own.crop_pct), own.interpolation)
    assert (encoder.digest, encoder.mean, encoder.std) == (sha256(path), own.mean, own.std)
    assert encoder.embed(smooth_tiles(2)).shape == (2, encoder.dim)


def test_weights_that_do_not_fit_are_refused_with_the_keys(local_resnet):
    folder, state = local_resnet
    renamed = {("stem" + k if k == "conv1.0.weight" else k): v for k, v in state.items()}
    short = state | {"conv1.0.weight": torch.zeros(1)}
    for name, tensors in (("renamed", renamed), ("short", short)):
        path = folder / f"{name}.safetensors"
        save_file(tensors, path)
        with pytest.raises(PekaError, match=f"{name}.*conv1.0.weight"):
            load_encoder("resnet10t", weights=path, device="cpu")
    with pytest.raises(PekaError, match="resnet10t=PATH"):
        load_encoder("resnet10t", weights=folder / "absent.pth", device="cpu")


def test_an_unknown_name_and_a_missing_network_name_the_encoder(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host\nlong trace")

    with pytest.raises(PekaError, match="no_such_model=PATH"):
        load_encoder("no_such_model", device="cpu")
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(PekaError, match="resnet18"):
        load_encoder("resnet18", device="cpu")


# ---- encoders of one's own -----------------------------------------------------------------------

OWN = """
import numpy as np, timm, torch
from peka_core.encoders import Encoder

def preprocess(tiles):
    x = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    return torch.nn.functional.interpolate(x, (64, 64)) * 2.0

def network(**more):
    torch.manual_seed(0)
    shape = {"img_size": 64, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 1}
    return timm.models.VisionTransformer(**shape, num_classes=0, **more)

def build():
    return network(), preprocess

def whole(device):
    return Encoder("mine", network(), (0.5,) * 3, (0.2,) * 3, 16, 64, 64)

def tokens():
    return network(global_pool=""), preprocess

def nan():
    return network(), lambda tiles: preprocess(tiles) * np.nan

def sizes():
    return network(), lambda tiles: preprocess(tiles)[:, :, :32]

def same():
    return torch.nn.Sequential(network(), torch.nn.Threshold(9e9, 0.0)), preprocess

def wrong_dim():
    return Encoder("mine", network(), (0.5,) * 3, (0.2,) * 3, 8, 64, 64)

def nothing():
    return None

def broken():
    raise ValueError("no weights here")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file with encoders of one's own, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_file.py").write_text(OWN)
    return tmp_path / "my_file.py"


def test_a_file_builds_an_encoder_with_its_own_transform(own):
    encoder, tiles = load_encoder("my_file.py:build", device="cpu"), smooth_tiles(3)
    assert (encoder.name, encoder.dim, encoder.size) == ("my_file.py:build", 16, 64)
    assert not any(p.requires_grad for p in encoder.model.parameters())
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255, (64, 64)
    )
    assert torch.equal(encoder.transform(tiles), resized * 2.0)
    expected = encoder.model(resized * 2.0)
    np.testing.assert_allclose(encoder.embed(tiles), expected, atol=1e-5)
    pair = load_encoder((encoder.model, encoder.preprocess), device="cpu")
    np.testing.assert_array_equal(pair.embed(tiles), encoder.embed(tiles))
    assert load_encoder("my_file.py:whole", device="cpu").embed(tiles).shape == (3, 16)


def test_an_edit_of_weights_or_of_the_transform_is_another_digest(own):
    digests = {load_encoder("my_file.py:build", device="cpu").digest for _ in range(2)}
    for old, new in (("* 2.0", "* 3.0"), ("manual_seed(0)", "manual_seed(1)")):
        own.write_text(OWN.replace(old, new))
        digests.add(load_encoder("my_file.py:build", device="cpu").digest)
    assert len(digests) == 3


@pytest.mark.parametrize(
    "name", ["tokens", "nan", "sizes", "same", "wrong_dim", "nothing", "broken", "absent", "build"]
)
def test_what_is_no_encoder_is_refused_with_the_files_name(own, name):
    options = {"weights": "w.pth"} if name == "build" else {}  # its own code loads its weights
    with pytest.raises(PekaError, match="my_file.py"):
        load_encoder(f"my_file.py:{name}", device="cpu", **options)


def test_names_of_files_are_checked_and_made_absolute_before_a_run(own):
    check_names(["my_file.py:build"], {})
    with pytest.raises(PekaError, match=r"gone\.py"):
        check_names(["gone.py:build"], {})
    expected = f"{own}:build"
    assert load_profile("smoke", {"encoder": "my_file.py:build"}).encoder == expected
    (own.parent / "mine.yaml").write_text("base: smoke\nencoder: my_file.py:build\n")
    assert load_profile(str(own.parent / "mine.yaml")).encoder == expected


def test_a_run_embeds_with_it_and_an_edit_makes_new_units(own, monkeypatch):
    monkeypatch.setattr(folders, "root", lambda: own.parent)
    changes = SMALL | {"encoder": "my_file.py:build"}
    work = open_run("smoke", "mine", "cpu", {}, changes)
    first = stages.features(work, "frozen").obsm["X_encoder"]
    assert first.shape == (len(work.cohort().obs), 16)
    assert stages.features(work, "bat", "patients/0").obsm["X_encoder"].shape == first.shape
    name = work.encoder_name()
    assert name.startswith("my_file.py:build@") and str(own.parent) not in name
    own.write_text(OWN.replace("* 2.0", "* 3.0"))
    again = open_run("smoke", "mine", "cpu", {}, changes)
    assert not np.array_equal(stages.features(again, "frozen").obsm["X_encoder"], first)
    assert len(list((work.folder / "units").glob("features-*"))) == 3
