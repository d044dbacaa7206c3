"""Encoders: the transform against timm's own, weights read or refused, precision, `mini` and `random`."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform
from timm.models.vision_transformer import VisionTransformer

from peka_core import encoders
from peka_core.device import autocast, best_device, has_bfloat16
from peka_core.encoders import Encoder, load_encoder
from peka_core.errors import PekaError
from peka_core.files import sha256


def tiny_encoder(size=224, **facts):
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=size, patch_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=0
    )
    facts = {
        "name": "tiny",
        "mean": (0.7, 0.5, 0.8),
        "std": (0.2, 0.3, 0.1),
        "dim": 32,
        "size": size,
        "resize": size,
        **facts,
    }
    return Encoder(model=model.eval().requires_grad_(False), **facts)


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
    theirs = create_transform(
        224, interpolation=interpolation, crop_pct=crop_pct, mean=encoder.mean, std=encoder.std
    )
    expected = torch.stack([theirs(Image.fromarray(tile)) for tile in tiles])
    step = 1 / 255 / torch.tensor(encoder.std).view(3, 1, 1)  # PIL rounds to whole grey levels
    assert ((encoder.transform(tiles) - expected).abs() <= 1.1 * step).all()


def test_bicubic_does_not_leave_the_range_of_colours():
    tiles = np.zeros((1, 224, 224, 3), np.uint8)
    tiles[:, :, ::16] = tiles[:, :, 1::16] = 255
    encoder = tiny_encoder(resize=256, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
    x = encoder.transform(tiles)
    assert x.min() == 0 and x.max() == 1


def test_transform_refuses_floats_and_channels_first():
    with pytest.raises(PekaError, match=r"uint8 \(n, height, width, 3\), not torch.float32"):
        tiny_encoder().transform(np.zeros((1, 224, 224, 3), np.float32))
    with pytest.raises(PekaError, match=r"\(1, 3, 224, 224\)"):
        tiny_encoder().transform(np.zeros((1, 3, 224, 224), np.uint8))


def test_encode_refuses_another_shape():
    with pytest.raises(PekaError, match=r"tiny expects x \(n, 3, 224, 224\), not \(2, 3, 96, 96\)"):
        tiny_encoder().encode(torch.zeros(2, 3, 96, 96))


def test_embed_is_transform_then_encode_whatever_the_batch():
    encoder, tiles = tiny_encoder(), smooth_tiles(5)
    features = encoder.embed(tiles, batch_size=2)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, encoder.encode(encoder.transform(tiles)), atol=1e-5)
    with pytest.raises(PekaError, match="no tiles"):
        encoder.embed(tiles[:0])


def test_precision_of_the_encoder_is_used_by_embed(monkeypatch):
    monkeypatch.setattr(encoders, "has_bfloat16", lambda device: True)
    exact = tiny_encoder().embed(smooth_tiles(3))
    rounded = tiny_encoder(precision="bfloat16").embed(smooth_tiles(3))
    assert 1e-4 < np.abs(exact - rounded).max() < 0.1


def test_autocast_does_nothing_where_the_device_lacks_bfloat16(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr(encoders, "has_bfloat16", lambda device, has=has: has)
        with autocast("cpu"):
            assert torch.is_autocast_enabled("cpu") is has
        with autocast("cpu", "float32"):
            assert not torch.is_autocast_enabled("cpu")


def test_mini_is_frozen_reproducible_and_carries_its_digest():
    mini = load_encoder("mini", device="cpu")
    assert (mini.dim, mini.size, mini.precision) == (128, 224, "float32")
    assert mini.digest == sha256(encoders.MINI_WEIGHTS)
    assert not any(p.requires_grad for p in mini.model.parameters()) and not mini.model.training
    tiles = smooth_tiles(3)
    features = mini.embed(tiles)
    assert features.shape == (3, 128)
    np.testing.assert_array_equal(features, load_encoder("mini", device="cpu").embed(tiles))


def test_float32_on_a_gpu_is_float32():
    """cuDNN may not round to TF32 meanwhile; small encoders stay in float32 although they are transformers."""
    before = torch.backends.cudnn.allow_tf32
    with autocast("cuda", "float32"):
        assert torch.backends.cudnn.enabled and not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
    model = load_encoder("mini", device="cpu").model
    assert [encoders.embeds_in_bfloat16(name, model) for name in ("mini", "random", "uni")] == [
        False,
        False,
        True,
    ]


def test_embedding_halves_a_batch_that_does_not_fit(monkeypatch):
    mini, tiles, encode, sizes = (
        load_encoder("mini", device="cpu"),
        smooth_tiles(7),
        encoders.Encoder.encode,
        [],
    )

    def small_device(self, x):
        sizes.append(len(x))
        if len(x) > room:
            raise torch.OutOfMemoryError
        return encode(self, x)

    whole = mini.embed(tiles)
    monkeypatch.setattr(encoders.Encoder, "encode", small_device)
    room = 2
    np.testing.assert_allclose(mini.embed(tiles, batch_size=7), whole, atol=1e-5)
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    room = 0
    with pytest.raises(
        PekaError, match="no memory for a single tile on cpu: take a smaller encoder"
    ):
        mini.embed(tiles, batch_size=4)


def test_random_is_minis_network_drawn_from_the_seed():
    state = torch.random.get_rng_state()
    first, again, other = (load_encoder("random", device="cpu", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.digest == again.digest != other.digest
    mini = load_encoder("mini", device="cpu")
    shapes = [{k: v.shape for k, v in e.model.state_dict().items()} for e in (mini, first)]
    assert shapes[0] == shapes[1]
    assert mini.digest != first.digest


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
    assert encoder.digest == sha256(path)
    own = timm.get_pretrained_cfg("resnet10t")
    assert (encoder.mean, encoder.std, encoder.interpolation) == (
        own.mean,
        own.std,
        own.interpolation,
    )
    assert encoder.size == own.input_size[-1] and encoder.resize == int(
        own.input_size[-1] / own.crop_pct
    )
    assert encoder.embed(smooth_tiles(2)).shape == (2, encoder.dim)


def test_weights_that_do_not_fit_are_refused_with_the_keys(local_resnet):
    folder, state = local_resnet
    state = {("stem" + k if k == "conv1.0.weight" else k): v for k, v in state.items()}
    save_file(state, folder / "renamed.safetensors")
    with pytest.raises(
        PekaError, match=r"renamed.*missing 1: \['conv1.0.weight'\]; unknown 1: \['stemconv1"
    ):
        load_encoder("resnet10t", weights=folder / "renamed.safetensors", device="cpu")
    with pytest.raises(PekaError, match="--weights resnet10t=PATH"):
        load_encoder("resnet10t", weights=folder / "absent.pth", device="cpu")
    state = local_resnet[1] | {"conv1.0.weight": torch.zeros(1)}
    save_file(state, folder / "short.safetensors")
    with pytest.raises(PekaError, match="short.*size mismatch for conv1.0.weight"):
        load_encoder("resnet10t", weights=folder / "short.safetensors", device="cpu")


def test_pickled_code_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"x": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(PekaError, match="bad.pth is not a file of weights that loads safely"):
        load_encoder("resnet10t", weights=tmp_path / "bad.pth", device="cpu")
    assert not (tmp_path / "ran").exists()


def test_unknown_name_and_missing_network_say_what_to_do(monkeypatch):
    with pytest.raises(
        PekaError, match=r"'no_such_model'.*mini, random.*--weights no_such_model=PATH.*HF_TOKEN"
    ):
        load_encoder("no_such_model", device="cpu")

    def offline(*args, **kwargs):
        raise OSError("no route to host\nlong trace")

    monkeypatch.setattr(encoders.timm, "create_model", offline)
    with pytest.raises(PekaError, match="'resnet18'.*OSError: no route to host[)]"):
        load_encoder("resnet18", device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_gpu_features_are_close_to_those_of_the_cpu():
    tiles = smooth_tiles(8)
    here, there = (load_encoder("mini", device=device).embed(tiles) for device in ("cpu", "cuda"))
    assert best_device() == "cuda" and has_bfloat16("cuda") in (True, False)
    np.testing.assert_allclose(there, here, atol=1e-4)
