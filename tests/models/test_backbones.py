"""Networks of the manifest against golden outputs and against transformers.

fixtures/backbones was made with the official code of each model. Its weights follow a rule
(FILL-v1), so nobody needs the real ones. Inputs are normalised as the fixture says, and neither
resized nor cropped.
"""

import dataclasses
import gc
import hashlib
import json
import tempfile
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
from peka_core.training_parts.saved_student import count_parameters

FIXTURES = Path(__file__).parents[1] / "fixtures" / "backbones"
RULE = json.loads((FIXTURES / "fill_rule.json").read_text())
KEYS = json.loads((FIXTURES / "state_dict_keys.json").read_text())
MAP = json.loads((FIXTURES / "ctranspath_key_map.json").read_text())
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


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    """The giant has 1.1 G parameters."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def encoder_of(row, model) -> Encoder:
    how = row.transform
    facts = {"size": how["crop"], "resize": None, "pool": row.pooling}
    return Encoder(row.name, model, tuple(how["mean"]), tuple(how["std"]), row.dim, **facts)


def golden_image(encoder: Encoder, name: str) -> torch.Tensor:
    """x (1, 3, 224, 224) of the fixture's tile, as the fixture checks it."""
    facts = RULE["models"][name]
    assert [list(encoder.mean), list(encoder.std)] == [
        facts["normalise"][k] for k in ("mean", "std")
    ]
    x, check = encoder.transform(IMAGE), facts["input_check"]
    assert list(x.shape) == check["shape"]
    np.testing.assert_allclose(x.double().sum(), check["sum_float64"], rtol=1e-6)
    np.testing.assert_allclose(x[0, 0, 0, :4], check["x[0,0,0,:4]"], rtol=2e-6)
    np.testing.assert_allclose(x[0, 2, 100, 57], check["x[0,2,100,57]"], rtol=2e-6)
    return x


def compare_with_golden(encoder: Encoder, name: str, modules: dict[str, str]) -> None:
    """Pooled output, and intermediates by the fixture's names of modules, within its tolerance."""
    facts, seen = RULE["models"][name], {}
    tolerance = facts["tolerance"]
    for theirs, ours in modules.items():
        keep = lambda _m, _i, out, theirs=theirs: seen.__setitem__(theirs, out.detach())
        encoder.model.get_submodule(ours).register_forward_hook(keep)
    with torch.no_grad():
        features = encoder.encode(golden_image(encoder, name))
    golden = np.load(FIXTURES / "golden_outputs.npz")[f"{name}|{OUTPUT[name]}"]
    assert features.shape == (1, encoder.dim)
    np.testing.assert_allclose(features[0], golden, **tolerance)
    for theirs, known in (facts["intermediates_image0"] or {}).items():
        out = seen[theirs]
        np.testing.assert_allclose(out.double().mean(), known["mean"], atol=1e-6)
        np.testing.assert_allclose(out.double().std(correction=0), known["std"], rtol=1e-5)
        tokens = out.reshape(1, -1, out.shape[-1])  # the fixture has (1, tokens, d)
        assert np.prod(known["shape"]) == tokens.numel() and known["shape"][-1] == out.shape[-1]
        hundred = min(100, tokens.shape[1] - 1)  # the fixture clips token 100 to the last one
        for label, token in (("token0", 0), ("token100", hundred), ("last_token", -1)):
            if (label := f"first8_{label}") in known:
                where = {"err_msg": f"{theirs} {label}"}
                np.testing.assert_allclose(tokens[0, token, :8], known[label], **tolerance, **where)


def official(name: str) -> dict[str, torch.Tensor]:
    """Empty tensors with the keys and shapes of the official file."""
    return {k: torch.empty(shape, device="meta") for k, (shape, _) in KEYS[name].items()}


def test_fill_rule_gives_the_test_vectors():
    for key, known in RULE["test_vectors"].items():
        assert zlib.crc32(key.encode()) == known["crc32"]
        np.testing.assert_array_equal(
            fill(key, known["shape"]).ravel(), np.float32(known["values"])
        )


@pytest.mark.parametrize("name", THEIRS)
def test_networks_have_the_keys_and_shapes_of_the_official_files(name):
    row, heads = (
        manifest_entries()[name],
        {"fc.weight", "fc.bias"},
    )  # the file's classifier is cut off
    ours = {k: tuple(v.shape) for k, v in backbones.build(row).state_dict().items()}
    theirs = backbones.LAYOUTS[row.layout](official(THEIRS[name]))
    assert ours == {k: tuple(v.shape) for k, v in theirs.items() if k not in heads}


def test_the_rules_of_ctranspath_are_the_map():
    given = official("ctranspath")
    named = backbones.from_ctranspath(given)
    assert {k: list(v.shape) for k, v in named.items()} == MAP["timm_1_keys"]
    kept = {id(v) for v in named.values()}
    assert sorted(k for k, v in given.items() if id(v) not in kept) == sorted(MAP["dropped"])


def from_file(name, content, tmp_path) -> Encoder:
    """The encoder with weights from a file of the official layout; tiles enter as they are."""
    torch.save(content, tmp_path / "official.pth")
    encoder = load_encoder(name, weights=tmp_path / "official.pth", device="cpu")
    encoder.resize = None
    return encoder


@pytest.mark.parametrize("name", ["resnet50", "resnet50_a1"])
def test_resnet_equals_golden(name, tmp_path):
    compare_with_golden(from_file(name, filled_state("resnet50"), tmp_path), "resnet50", {})


def test_ctranspath_equals_golden_from_a_file_in_the_official_layout(tmp_path):
    encoder = from_file("ctranspath", {"model": filled_state("ctranspath")}, tmp_path)
    modules = {f"layers.{i}": f"layers.{i + 1}.downsample" for i in (1, 2)}
    modules |= {"layers.0(incl. downsample)": "layers.1.downsample"}
    same = {name: name for name in ("patch_embed", "layers.3", "norm")}
    compare_with_golden(encoder, "ctranspath", modules | same)


GIANT = pytest.param("h-optimus-0", 39, marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "last"), [("uni", 23), GIANT])
def test_vit_equals_golden(name, last):
    row, theirs = manifest_entries()[name], THEIRS[name]
    model = backbones.build(row)
    backbones.put_weights(model, filled_state(theirs), "FILL-v1", name)  # without a second copy
    encoder = encoder_of(row, model.requires_grad_(False))
    names = {name: name for name in ("patch_embed", "blocks.0", "norm")}
    compare_with_golden(encoder, theirs, names | {"blocks.last": f"blocks.{last}"})
    del model, encoder
    gc.collect()


def cut(row, depth):
    """The row with a few blocks only."""
    return dataclasses.replace(row, network=row.network | {"depth": depth})


def shallow(row, depth=2):
    """The row's network cut to a few blocks, drawn."""
    torch.manual_seed(3)
    return backbones.build(cut(row, depth), "cpu").requires_grad_(False)


# Dim of a token, parameters, tensors, CLS and registers, tokens at 224 px. The first three were
# counted elsewhere (backbones_facts.json), except phikon and kaiko-vits16 (published ViT-B, ViT-S)
# and h-optimus-1 (as h-optimus-0).
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
def test_vits_have_their_size_tokens_and_registers(name):
    row, (dim, parameters, tensors, prefix, tokens) = manifest_entries()[name], VITS[name]
    model = backbones.build(row)
    assert model.num_features == dim and all(p.is_meta for p in model.parameters())
    assert parameters in (None, sum(p.numel() for p in model.parameters()))
    assert tensors in (None, len(model.state_dict()))
    assert model.num_prefix_tokens == prefix
    x = torch.empty(1, 3, 224, 224, device="meta")
    assert model.forward_features(x).shape == (1, tokens, dim)
    assert encoder_of(row, model).encode(x).shape == (1, row.dim)


@pytest.mark.parametrize("name", VITS)
def test_pooling_reads_the_tokens_that_the_row_says(name):
    row = manifest_entries()[name]
    model = shallow(row)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens, features = model.forward_features(x), encoder_of(row, model).encode(x)
    prefix = VITS[name][3]
    patches = sum(tokens[:, i] for i in range(prefix, tokens.shape[1])) / (tokens.shape[1] - prefix)
    expected = torch.cat([tokens[:, 0], patches], 1) if row.pooling == "cls+mean" else tokens[:, 0]
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert row.pooling == "cls+mean" or model.global_pool == row.pooling


def test_cls_and_mean_also_hold_in_training_under_an_adapter():
    row = manifest_entries()["virchow2"]
    encoder = encoder_of(row, shallow(row, depth=1))
    student = Student(encoder, "bone", 6, Recipe(block=256, hidden=8)).train()
    x = torch.randn(1, 3, 224, 224)
    features, projected = student.encode(x)
    np.testing.assert_array_equal(features.detach(), encoder.encode(x))  # identity at the start
    features[:, 1280:].square().sum().backward()  # the mean of the patches alone
    assert features.shape == (1, 2560) and projected.shape == (1, 6)
    assert student.network.blocks[0].attn.qkv.blocks.grad.abs().max() > 0


def hf_vit(hidden, heads, eps, layers=2):
    """transformers' ViT with drawn weights: an independent implementation with its own names."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(5)
    sizes = {"num_hidden_layers": layers, "num_attention_heads": heads, "layer_norm_eps": eps}
    config = ViTConfig(hidden_size=hidden, intermediate_size=4 * hidden, **sizes)
    model = ViTModel(config, add_pooling_layer=True).eval()
    for name, p in model.named_parameters():
        scale = "layernorm" in name and name.endswith("weight")
        torch.nn.init.normal_(p, mean=float(scale), std=0.2 if p.ndim < 2 else p[0].numel() ** -0.5)
    return model


def hf_names(model) -> dict[str, torch.Tensor]:
    """Its state dict as transformers writes it into a file, which is the layout on the hub."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


@pytest.mark.parametrize(("name", "eps"), [("phikon", 1e-12), ("kaiko-vits16", 1e-6)])
def test_vits_of_transformers_equal_ours(name, eps):
    row = manifest_entries()[name]
    theirs, model = hf_vit(row.dim, row.dim // 64, eps), backbones.build(cut(row, 2))
    state = hf_names(theirs)
    assert {"encoder.layer.1.attention.attention.query.weight", "pooler.dense.weight"} < set(state)
    backbones.put_weights(model, backbones.from_hf_vit(state), "drawn", name)
    encoder = encoder_of(row, model.requires_grad_(False))
    x = encoder.transform(IMAGE)
    with torch.no_grad():
        ours, expected = encoder.encode(x), theirs(x).last_hidden_state[:, 0]
    assert expected.std() > 0.3
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-5)
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {eps}


def test_names_that_no_rule_knows_are_refused_not_dropped():
    model = hf_vit(768, 12, 1e-12, 1)
    other = {"vit." + k: v for k, v in model.state_dict().items()}  # not the names of its files
    more = {**hf_names(model), "embeddings.extra": torch.zeros(1)}
    for state, named in ((other, "missing [1-9]"), (more, r"missing 0.*embeddings\.extra")):
        ours = backbones.build(cut(manifest_entries()["phikon"], 1))
        with pytest.raises(PekaError, match=f"hub.bin.*phikon.*{named}"):
            backbones.put_weights(ours, backbones.from_hf_vit(state), "hub.bin", "phikon")
    half = {"encoder.layer.0.attention.attention.query.weight": torch.zeros(2, 2)}
    assert backbones.from_hf_vit(half).keys() == {"blocks.0.attn.query.weight"}


def test_files_in_half_precision_are_read_as_float32(tmp_path):
    row = manifest_entries()["kaiko-vits16"]
    state = {k: v.half() for k, v in backbones.build(row, "cpu").state_dict().items()}
    encoder = from_file(row.name, state, tmp_path)
    assert {p.dtype for p in encoder.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("suffix", ["", ".bin", ".pth", ".safetensors"])
@pytest.mark.parametrize(
    "write", [save_file, torch.save, partial(torch.save, _use_new_zipfile_serialization=False)]
)
def test_a_file_of_weights_is_known_by_its_first_bytes(tmp_path, write, suffix):
    write({"x": torch.arange(3.0)}, tmp_path / f"blob{suffix}")
    assert backbones.read_weights(tmp_path / f"blob{suffix}", "uni")["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("content", [
    b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n",
    b"<html><body>please log in</body></html>", b"",
    b"\x89HDF\r\n\x1a\n" + bytes(99), b"Access denied", bytes(range(256)), b"PK\x03\x04 cut off",
    b"\x80\x02cut off",
    (2**20).to_bytes(8, "little") + b'{"cut": off',
])  # fmt: skip
@pytest.mark.parametrize("name", ["w.bin", "w.safetensors"])
def test_what_is_no_file_of_weights_is_named_without_the_loaders_advice(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name)


def refused(path):
    with pytest.raises(PekaError, match=path.name) as caught:
        backbones.read_weights(path, "uni")
    assert "weights_only" not in str(caught.value)  # the unsafe way is not suggested


def test_files_that_hold_code_or_more_than_tensors_are_refused(tmp_path):
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "training.pth")
    torch.save({"x": Path("somewhere")}, tmp_path / "code.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    for name in ("training.pth", "code.pth", "script.pt"):
        refused(tmp_path / name)


@pytest.mark.parametrize("method", ["bone", "bat"])
@pytest.mark.parametrize(
    ("name", "adapter", "limit"), [("h-optimus-0", 47_185_920, 200e6), ("uni", 18_874_368, 90e6)]
)
def test_a_saved_student_is_its_adapter_and_projector_alone(tmp_path, name, adapter, limit, method):
    row = manifest_entries()[name]
    model, zero = backbones.build(row), torch.zeros(())  # expanded, it takes no memory
    state = {k: zero.expand(v.shape) for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    encoder = encoder_of(row, model.requires_grad_(False))
    student = Student(encoder, method, 3072, Recipe(block=256, hidden=512))  # scFoundation's width
    student.save(tmp_path / "unit")
    files = {path.name: path for path in (tmp_path / "unit").iterdir()}
    assert files.keys() == {"adapter.safetensors", "projector.safetensors", "card.json"}
    total = sum(path.stat().st_size for path in files.values())
    assert 4 * adapter < total < limit
    saved = load_file(files["adapter.safetensors"])
    assert len(saved) == len(model.blocks) and sum(v.numel() for v in saved.values()) == adapter
    assert count_parameters(student)["adapter"] == adapter
    files["adapter.safetensors"].unlink()  # 189 MB


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 5e-2), (torch.float16, 8e-3)])
@pytest.mark.parametrize("name", ["uni", "h-optimus-0"])
def test_half_precision_on_gpu_is_close_to_float32(name, dtype, limit):
    """Four blocks with FILL-v1's weights.

    The golden file measured bfloat16 on the CPU: 2.1e-2 (UNI), 4.3e-2 (H-optimus-0).
    """
    row = manifest_entries()[name]
    model = backbones.build(cut(row, 4), "cpu")
    state = {k: torch.from_numpy(fill(k, v.shape)) for k, v in model.state_dict().items()}
    backbones.put_weights(model, state, "FILL-v1", name)
    encoder = encoder_of(row, model.requires_grad_(False))
    x = encoder.transform(IMAGE)
    with torch.no_grad():
        expected = encoder.encode(x)
        model.cuda()
        with autocast("cuda", "float32"):
            exact = encoder.encode(x.cuda()).cpu()
        with torch.autocast("cuda", dtype=dtype):
            rounded = encoder.encode(x.cuda()).float().cpu()
    assert (exact - expected).abs().max() < 1e-4  # 1e-3 where cuDNN may take TF32
    assert 0 < (rounded - expected).abs().max() < limit
    assert torch.nn.functional.cosine_similarity(rounded, expected).min() > 0.9999
