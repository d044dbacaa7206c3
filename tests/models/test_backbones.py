"""Networks of the manifest against golden outputs and against transformers.

fixtures/backbones was made with the official code of each model, with weights by a rule (FILL-v1)
and inputs that are normalised, but neither resized nor cropped.
"""

import dataclasses
import hashlib
import json
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from peka_core.common.device import autocast
from peka_core.common.errors import PekaError
from peka_core.encoders import Encoder, load_encoder
from peka_core.models import backbones
from peka_core.models.encoder_files import manifest_entries
from peka_core.recipe import Recipe
from peka_core.student import Student

FIXTURES = Path(__file__).parents[1] / "fixtures" / "backbones"
RULE = json.loads((FIXTURES / "fill_rule.json").read_text())
KEYS = json.loads((FIXTURES / "state_dict_keys.json").read_text())
THEIRS = {"resnet50": "resnet50", "resnet50_a1": "resnet50", "ctranspath": "ctranspath"}
THEIRS |= {"uni": "uni", "h-optimus-0": "hoptimus0"}
OUTPUT = {"resnet50": "pool2048", "ctranspath": "emb768", "uni": "emb1024", "hoptimus0": "emb1536"}
IMAGE = np.load(FIXTURES / "test_image_224.npz")["image"][None]
M64 = (1 << 64) - 1
PIECE = 1 << 15  # values at a time: they stay in the cache


def fill(key: str, shape) -> np.ndarray:
    """FILL-v1: the float32 values of one tensor."""
    last, shape, n = key.rsplit(".", 1)[-1], tuple(shape), int(np.prod(shape))
    salt = zlib.crc32(key.encode()) * 0xD1342543DE82EF95
    if len(shape) >= 2 and last == "weight":
        factor, shift = np.sqrt(3 / np.prod(shape[1:])), 0.0
    elif len(shape) == 1 and last in ("weight", "gamma", "running_var"):
        factor, shift = 0.25, 1.0
    else:
        factor, shift = 0.2, 0.0
    out = np.empty(n, np.float32)
    counts = np.arange(1, PIECE + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for start in range(0, n, PIECE):
        size = min(PIECE, n - start)
        z = counts[:size] + np.uint64((salt + start * 0x9E3779B97F4A7C15) & M64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        u = (z >> np.uint64(40)).astype(np.float64) / 2**23 - 1  # in [-1, 1)
        out[start : start + size] = shift + factor * u
    return out.reshape(shape)


def filled_state(name: str) -> dict[str, torch.Tensor]:
    """The filled tensors of a model in its official layout, with the digest of the rule."""
    digest, state = hashlib.sha256(), {}
    for key, (shape, dtype) in sorted(KEYS[name].items()):
        if "int" in dtype:
            state[key] = torch.zeros(shape, dtype=torch.int64)
        elif key.endswith("attn_mask"):
            state[key] = torch.zeros(shape)
        else:
            values = fill(key, shape)
            digest.update(key.encode())
            digest.update(values.ravel())
            state[key] = torch.from_numpy(values)
    assert digest.hexdigest() == RULE["models"][name]["sha256_of_filled_weights"]
    return state


def encoder_of(row, model) -> Encoder:
    how = row.transform
    facts = {"size": how["crop"], "resize": None, "pool": row.pooling}
    return Encoder(row.name, model, tuple(how["mean"]), tuple(how["std"]), row.dim, **facts)


def compare_with_golden(encoder: Encoder, name: str) -> None:
    """Normalised input and pooled output of the fixture's image."""
    facts = RULE["models"][name]
    check, normal = facts["input_check"], facts["normalise"]
    assert [list(encoder.mean), list(encoder.std)] == [normal["mean"], normal["std"]]
    x = encoder.transform(IMAGE)
    np.testing.assert_allclose(x.double().sum(), check["sum_float64"], rtol=1e-6)
    np.testing.assert_allclose(x[0, 2, 100, 57], check["x[0,2,100,57]"], rtol=2e-6)
    with torch.no_grad():
        features = encoder.encode(x)
    golden = np.load(FIXTURES / "golden_outputs.npz")[f"{name}|{OUTPUT[name]}"]
    assert features.shape == (1, encoder.dim)
    np.testing.assert_allclose(features[0], golden, **facts["tolerance"])


def from_file(name, content, tmp_path) -> Encoder:
    """The encoder with weights from a file of the official layout; tiles enter as they are."""
    torch.save(content, tmp_path / "official.pth")
    encoder = load_encoder(name, weights=tmp_path / "official.pth", device="cpu")
    encoder.resize = None
    return encoder


@pytest.mark.parametrize("name", ["resnet50", "resnet50_a1", "ctranspath"])
def test_networks_equal_golden_from_a_file_in_the_official_layout(name, tmp_path):
    state = filled_state(THEIRS[name])
    state = {"model": state} if name == "ctranspath" else state
    compare_with_golden(from_file(name, state, tmp_path), THEIRS[name])


@pytest.mark.parametrize("name", ["uni", pytest.param("h-optimus-0", marks=pytest.mark.slow)])
def test_vit_equals_golden(name):
    row, model = manifest_entries()[name], backbones.build(manifest_entries()[name])
    state = filled_state(THEIRS[name])
    backbones.put_weights(model, state, "FILL-v1", name)  # without a second copy
    compare_with_golden(encoder_of(row, model.requires_grad_(False)), THEIRS[name])


def cut(row, depth):
    """The row with a few blocks only."""
    return dataclasses.replace(row, network=row.network | {"depth": depth})


# Dim of a token, parameters, tensors, CLS and registers, tokens at 224 px; the first three from
# backbones_facts.json, from published ViT-B and ViT-S, and for h-optimus-1 as for h-optimus-0.
VITS = {
    "uni": (1024, 303_350_784, 342, 1, 197),
    "h-optimus-0": (1536, 1_134_774_272, 567, 5, 261),
    "h-optimus-1": (1536, 1_134_774_272, 567, 5, 261),
    "virchow": (1280, 631_229_184, 454, 1, 257),
    "virchow2": (1280, 631_239_424, 455, 5, 261),
    "prov-gigapath": (1536, None, 566, 1, 197),
    "uni2-h": (1536, 681_394_176, 343, 9, 265),
    "phikon": (768, 85_798_656, None, 1, 197),
    "kaiko-vits16": (384, 21_665_664, 150, 1, 197),
}


@pytest.mark.parametrize("name", VITS)
def test_vits_have_their_size_and_pool_the_tokens_that_the_row_says(name, monkeypatch):
    row, (dim, parameters, tensors, prefix, n_tokens) = manifest_entries()[name], VITS[name]
    model = backbones.build(row)
    assert model.num_features == dim and all(p.is_meta for p in model.parameters())
    assert parameters in (None, sum(p.numel() for p in model.parameters()))
    assert tensors in (None, len(model.state_dict()))
    x = torch.empty(1, 3, 224, 224, device="meta")
    assert model.forward_features(x).shape == (1, n_tokens, dim)
    tokens = torch.randn(2, n_tokens, dim)
    monkeypatch.setattr(model, "forward_features", lambda *_, **__: tokens)
    features = encoder_of(row, model).encode(x)
    patches = sum(tokens[:, i] for i in range(prefix, n_tokens)) / (n_tokens - prefix)
    expected = torch.cat([tokens[:, 0], patches], 1) if row.pooling == "cls+mean" else tokens[:, 0]
    assert features.shape == (2, row.dim)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_cls_and_mean_hold_from_a_file_and_in_training_under_an_adapter(tmp_path, monkeypatch):
    torch.manual_seed(3)
    row = cut(manifest_entries()["virchow2"], 1)
    monkeypatch.setattr("peka_core.encoders.manifest_entries", lambda: {"virchow2": row})
    halves = {k: v.half() for k, v in backbones.build(row, "cpu").state_dict().items()}
    encoder, x = from_file("virchow2", halves, tmp_path), torch.randn(1, 3, 224, 224)
    assert {p.dtype for p in encoder.model.parameters()} == {torch.float32}
    student = Student(encoder, "bone", 6, Recipe(block=256, hidden=8)).train()
    features, tokens = student.encode(x)[0], encoder.model.forward_features(x)
    expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], 1)  # (1, 2560)
    np.testing.assert_allclose(features.detach(), expected, atol=1e-5)  # identity at the start
    features[:, 1280:].square().sum().backward()  # the mean of the patches alone
    assert student.network.blocks[0].attn.qkv.blocks.grad.abs().max() > 0


def hf_vit(folder, hidden, eps, layers=2):
    """transformers' ViT with drawn weights, saved to a folder in the layout of the hub's files."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(5)
    sizes = {"num_hidden_layers": layers, "num_attention_heads": hidden // 64}
    sizes |= {"hidden_size": hidden, "intermediate_size": 4 * hidden, "layer_norm_eps": eps}
    model = ViTModel(ViTConfig(**sizes), add_pooling_layer=True).eval()
    for name, p in model.named_parameters():
        scale = "layernorm" in name and name.endswith("weight")
        torch.nn.init.normal_(p, mean=float(scale), std=0.2 if p.ndim < 2 else p[0].numel() ** -0.5)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(("name", "eps"), [("phikon", 1e-12), ("kaiko-vits16", 1e-6)])
def test_vits_of_transformers_equal_ours_and_unknown_names_are_refused(name, eps, tmp_path):
    row = manifest_entries()[name]
    theirs, model = hf_vit(tmp_path, row.dim, eps), backbones.build(cut(row, 2))
    state = load_file(tmp_path / "model.safetensors")
    other = backbones.from_hf_vit(state | {"embeddings.extra": torch.zeros(1)})
    with pytest.raises(PekaError, match=rf"hub.bin.*{name}.*missing 0.*embeddings\.extra"):
        backbones.put_weights(model, other, "hub.bin", name)
    backbones.put_weights(model, backbones.from_hf_vit(state), "drawn", name)
    encoder = encoder_of(row, model.requires_grad_(False))
    x = encoder.transform(IMAGE)
    with torch.no_grad():
        ours, expected = encoder.encode(x), theirs(x).last_hidden_state[:, 0]
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {eps}
    assert expected.std() > 0.3
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize(
    "write", [save_file, torch.save, partial(torch.save, _use_new_zipfile_serialization=False)]
)
def test_a_file_of_weights_is_known_by_its_first_bytes(tmp_path, write, suffix):
    write({"x": torch.arange(3.0)}, tmp_path / f"blob{suffix}")
    assert backbones.read_weights(tmp_path / f"blob{suffix}", "uni")["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("content", [b"PK\x03\x04 cut off", {"epoch": 3}, {"x": Path("of code")}])
def test_what_is_no_file_of_weights_or_holds_code_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.bin")
    if isinstance(content, bytes):
        (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(PekaError, match=r"w\.bin") as caught:
        backbones.read_weights(tmp_path / "w.bin", "uni")
    assert "weights_only" not in str(caught.value)  # the unsafe way is not suggested


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("name", ["uni", "h-optimus-0"])
def test_bfloat16_on_gpu_is_close_to_float32(name):
    """With four blocks; the golden file measured bfloat16 on the CPU: 2.1e-2 and 4.3e-2."""
    row = manifest_entries()[name]
    model = backbones.build(cut(row, 4), "cpu").requires_grad_(False)
    state = {k: torch.from_numpy(fill(k, v.shape)) for k, v in model.state_dict().items()}
    backbones.put_weights(model, state, "FILL-v1", name)
    encoder = encoder_of(row, model)
    x = encoder.transform(IMAGE)
    expected = encoder.encode(x)
    model.cuda()
    for precision, least, limit in (("float32", -1, 1e-4), ("bfloat16", 1e-4, 5e-2)):
        with autocast("cuda", precision):  # TF32 would be off by 1e-3
            found = encoder.encode(x.cuda()).float().cpu()
        assert least < (found - expected).abs().max() < limit
        assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.9999
