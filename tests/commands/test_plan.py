"""The cost of a run against hand counts, real steps and real saved tensors; its text."""

from collections import OrderedDict
from dataclasses import replace

import anndata as ad
import pytest
import torch
from test_encoders import tiny_encoder
from torch.utils.flop_counter import FlopCounterMode

from peka_core.commands import needs, plan
from peka_core.encoders import Encoder
from peka_core.losses import batch_losses
from peka_core.recipe import Recipe
from peka_core.runner.profile import load_profile
from peka_core.student import Student

RECIPE = Recipe(block=8, rank=4, alpha=4.0, hidden=24, k=3)


def tiny(_name: str = "") -> Encoder:
    """A small encoder on the meta device; the real ones take half a minute."""
    encoder = tiny_encoder(64)
    return replace(encoder, model=encoder.model.to("meta"), device="meta")


@pytest.mark.parametrize("method", ["bone", "bat", "lora"])
def test_one_layer_by_hand(method):
    with torch.device("meta"):  # x (n, 3, 8, 8) -> 192 values -> one Linear layer -> 64
        parts = {"flat": torch.nn.Flatten(), "fc": torch.nn.Linear(192, 64, bias=False)}
        layer = torch.nn.Sequential(OrderedDict(parts)).requires_grad_(False)
    encoder = Encoder("one", layer, (0,) * 3, (1,) * 3, 64, 8, 8, device="meta")
    recipe = Recipe(layers=("fc",), block=16, rank=4, alpha=4.0, hidden=24)
    cost = plan.cost_of(encoder, method, recipe, 5)
    product, projector, thin = 2 * 192 * 64, 2 * (64 * 24 + 24 * 5), 2 * 4 * (192 + 64)
    blocks = 2 * 192 * 64 * 16  # W_g B_g: every value of W meets a row of 16
    assert cost.forward == product + projector + (thin if method == "lora" else 0)
    # backward: both products of the projector's layers; of the layer W' = W + ..., g^T x for B
    # (bone: of summed x, a 1/12 of it; lora: both factors, and through B to A)
    learn = {"bat": product, "bone": 2 * 16 * 64, "lora": thin + 2 * 4 * 64}[method]
    assert cost.step == cost.forward + 2 * projector + learn
    assert cost.batch == (2 * blocks if method == "bat" else 0)  # forward, and B's gradient


@pytest.mark.parametrize("method", ["bat", "bone", "lora", "full", "projector_only"])
def test_a_whole_step_costs_what_torch_counts_when_it_is_done(method):
    student, head = Student(tiny_encoder(64), method, 4, RECIPE), torch.nn.Linear(4, 3)
    trained = [p for p in [*student.parameters(), *head.parameters()] if p.requires_grad]
    tiles = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8)
    targets, labels = torch.randn(6, 4), torch.arange(6) % 3
    with FlopCounterMode(display=False, custom_mapping=plan.ATTENTION) as counter:
        optimiser = torch.optim.Adam(trained)
        losses, _ = batch_losses(student, head, tiles, targets, labels, RECIPE)
        losses["total"].backward()
        optimiser.step()
    cost = plan.cost_of(tiny(), method, RECIPE, 4)
    without_head = counter.get_total_flops() - 3 * 2 * 6 * 4 * 3
    assert 6 * cost.step + cost.batch == pytest.approx(without_head, rel=0.01)


def test_what_a_tile_holds_is_what_autograd_saves():
    student, saved, sizes = Student(tiny_encoder(64), "bat", 4, RECIPE), [], []
    hooks = torch.autograd.graph.saved_tensors_hooks
    for n in (2, 3):
        saved.clear()
        keep = hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor)
        with keep, torch.autocast("cpu", torch.bfloat16):
            kept = student.encode(torch.randn(n, 3, 64, 64))
        storages = (tensor.untyped_storage() for tensor in saved)
        sizes.append(sum({s.data_ptr(): s.nbytes() for s in storages}.values()))
        del kept
    cost = plan.cost_of(tiny(), "bat", RECIPE, 4)
    assert cost.tile == pytest.approx(sizes[1] - sizes[0], rel=0.05)
    full = plan.cost_of(tiny(), "bat", RECIPE, 4, bfloat16=False)
    assert 1.2 < full.tile / cost.tile <= 2 and full.step == cost.step
    relu = plan.cost_of(tiny(), "bat", replace(RECIPE, projector="relu"), 4)
    assert relu.tile < cost.tile and relu.step == cost.step  # ReLU keeps only its output


def test_with_last_blocks_a_step_costs_its_blocks_and_the_tokens_are_computed_once():
    recipe = replace(RECIPE, last_blocks=1)
    student = Student(tiny_encoder(64), "bat", 4, recipe)
    tiles = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8)
    count = lambda: FlopCounterMode(display=False, custom_mapping=plan.ATTENTION)
    with count() as below, torch.no_grad():
        tokens = student.tokens(tiles)
    with count() as above:
        student(tokens)[1].sum().backward()
    cost, whole = plan.cost_of(tiny(), "bat", recipe, 4), plan.cost_of(tiny(), "bat", RECIPE, 4)
    assert 6 * cost.frozen == below.get_total_flops() and whole.frozen == 0
    assert 6 * cost.step + cost.batch == pytest.approx(above.get_total_flops(), rel=0.01)


def test_a_plan_names_the_disk_and_the_time_of_tokens(monkeypatch):
    for module in (plan, needs):
        monkeypatch.setattr(module, "meta_encoder", tiny)
    monkeypatch.setattr(needs, "product_type", lambda _: torch.float32)
    options = {"block": 8, "last_blocks": 1, "epochs": 3, "methods": [], "all_methods": ["bat"]}
    plain, flips = (load_profile("demo", {**options, "flips": flips}) for flips in (False, True))
    size = 2_400 * 5 * 32 * 2  # tiles, four patches and the class token, width, bfloat16
    for profile, times in ((plain, 1), (flips, 8 * (1 - (7 / 8) ** 3))):
        text = plan.plan(profile, "H100")
        line = next(row for row in text.splitlines() if row.startswith("mini, bat, last 1 b"))
        expected = size * times
        assert f"{expected / 1e9:.3g} GB, {size / 2_400 / 1e6:.2f} MB a tile" in line
        without = needs.needs(replace(profile, recipe=replace(profile.recipe, last_blocks=0)))
        on_disk = needs.needs(profile).runs - without.runs
        assert on_disk == pytest.approx(2 * expected / 1e9, rel=1e-3)  # in float32 here
    per_tile = plan.cost_of(tiny(), "bat", flips.recipe, 4).frozen
    hours = 2_400 * times * per_tile / 989e12 / plan.SHARE / 3600
    assert f"; {hours:.2g} of the hours" in line


def test_the_papers_kidney_has_a_plan(papers_index, monkeypatch):
    for module in (plan, needs):
        monkeypatch.setattr(module, "meta_encoder", tiny)
    hours = 74_220 * plan.teacher_flops() / 0.35 / 3600 / 19.5e12  # float32 on an A100
    for precision, expected in (("float32", hours), ("bfloat16", hours * 19.5 / 312)):
        text = plan.plan(load_profile("hest-kidney", {"block": 8, "precision": precision}))
        line = next(line for line in text.splitlines() if line.startswith("scFoundation in"))
        assert line.split()[-2] == f"{expected:.2g}"
    assert "tokens on the disk" not in text
    assert 1.4 < needs.needs(load_profile("demo")).ram < 2.0
    for part in ("24 slides, 74,220 spots", "73,813", "13.0 GB", "1.43 GB", "align bat on all"):
        assert part in text, part
    assert "size 14" in plan.fit(plan.StudentCost(1, 1, 1, 10**9, 10**9), 32, 16, 0)


def test_work_is_what_chapter_3_trains():
    work = list(needs.work_of(load_profile("hest-kidney-nested"), 1000, 4))
    rows = [f"patients/{i}" for i in range(4)] + ["all", "spots/0"]
    assert [w.what for w in work[1:]] == [f"align bat on {name}" for name in rows]
    assert [w.trained for w in work] == [0] + [50 * 750] * 4 + [50 * 1000, 50 * 800]
    profile = load_profile("demo", {"last_blocks": 1, "epochs": 10})  # flips; 15 % validate
    tokens = next(w.tokens for w in needs.work_of(profile, 1000, 4) if w.last_blocks)
    assert tokens == round(750 * (0.85 * 8 * (1 - (7 / 8) ** 10) + 0.15))


def test_hours_on_a_cpu_grow_with_networks_and_spots(tiny_cohort, monkeypatch):
    monkeypatch.setattr(needs, "product_speed", lambda: 1e9)
    own = load_profile("own", {"path": str(tiny_cohort)})
    more = needs.cpu_hours(own, 3.6e12) - needs.cpu_hours(own, 0)
    assert more == pytest.approx(3.6e12 / 1e9 / needs.CPU_SHARE / 3600)
    size = needs.size_of(own)
    stored = sum(s.X.nnz for s in map(ad.read_h5ad, tiny_cohort.glob("adata/*.h5ad")))
    assert (size.spots, size.stored, size.genes) == (96, stored, 30)
    twice = lambda _: size._replace(spots=2 * size.spots, stored=2 * stored)
    once = needs.cpu_hours(own, 0)
    monkeypatch.setattr(needs, "size_of", twice)
    assert needs.cpu_hours(own, 0) == pytest.approx(2 * once, rel=0.01)
