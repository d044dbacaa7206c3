"""The price of a run: counted FLOPs against a hand count and against a real step, memory against real saved tensors, the text."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from test_encoders import tiny_encoder
from torch.utils.flop_counter import FlopCounterMode

from peka_core import alignment
from peka_core.commands import plan
from peka_core.commands.command_line import main
from peka_core.encoders import Encoder
from peka_core.errors import PekaError
from peka_core.recipe import Recipe
from peka_core.runner.profile import load_profile
from peka_core.student import Student

RECIPE = Recipe(block=8, rank=4, alpha=4.0, hidden=24, k=3)


def on_meta(encoder: Encoder) -> Encoder:
    return Encoder(
        "tiny",
        encoder.model.to("meta"),
        encoder.mean,
        encoder.std,
        encoder.dim,
        encoder.size,
        encoder.resize,
        device="meta",
    )


class OneLayer(torch.nn.Module):
    """x (n, 3, 8, 8) -> 192 values -> one Linear layer -> 64."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(192, 64, bias=False)

    def forward(self, x):
        return self.fc(x.flatten(1))  # (n, 192) -> (n, 64)


@pytest.mark.parametrize("method", ["bone", "bat", "lora"])
def test_one_layer_by_hand(method):
    with torch.device("meta"):
        encoder = Encoder(
            "one", OneLayer().requires_grad_(False), (0,) * 3, (1,) * 3, 64, 8, 8, device="meta"
        )
    recipe = Recipe(targets=("fc",), block=16, rank=4, alpha=4.0, hidden=24)
    cost = plan.cost_of(encoder, method, recipe, 5)
    product, projector, thin = 2 * 192 * 64, 2 * (64 * 24 + 24 * 5), 2 * 4 * (192 + 64)
    blocks = 2 * 192 * 64 * 16  # W_g B_g: every value of W meets a row of 16
    assert cost.forward == product + projector + (thin if method == "lora" else 0)
    # backward: both products of the projector's layers; of the layer W' = W + ..., g^T x for B (bone: of summed x, a 1/12 of it)
    learn = {"bat": product, "bone": 2 * 16 * 64, "lora": thin + 2 * 4 * 64}[
        method
    ]  # lora: both factors, and through B to A
    assert cost.step == cost.forward + 2 * projector + learn
    assert cost.batch == (
        2 * blocks if method == "bat" else 0
    )  # once forward, once for B's gradient


@pytest.mark.parametrize("method", ["bat", "bone", "lora", "full", "projector_only"])
def test_a_whole_step_costs_what_torch_counts_when_it_is_done(method):
    encoder = tiny_encoder(64)
    student = Student(encoder, method, 4, RECIPE)
    head = torch.nn.Linear(4, 3)
    optimiser = torch.optim.Adam(
        [p for p in [*student.parameters(), *head.parameters()] if p.requires_grad]
    )
    tiles, targets, labels = (
        torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8),
        torch.randn(6, 4),
        torch.arange(6) % 3,
    )
    with FlopCounterMode(display=False, custom_mapping=plan.ATTENTION) as counter:
        alignment._step(student, head, optimiser, tiles, targets, labels, RECIPE)
    cost = plan.cost_of(on_meta(tiny_encoder(64)), method, RECIPE, 4)
    assert 6 * cost.step + cost.batch == pytest.approx(
        counter.get_total_flops() - 3 * 2 * 6 * 4 * 3, rel=0.01
    )  # the head aside


def test_attention_is_counted():
    small, none = (
        plan.cost_of(on_meta(tiny_encoder(64)), "none", RECIPE, 4).forward for _ in range(2)
    )
    assert small == none > 0
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tiny_encoder(64).model(torch.randn(1, 3, 64, 64))
    assert small > counter.get_total_flops()  # which leaves fused attention out


def test_what_a_tile_holds_is_what_autograd_saves():
    student, saved = Student(tiny_encoder(64), "bat", 4, RECIPE), []
    keep = lambda tensor: (
        saved.append(
            (tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes(), tensor)
        )
        or tensor
    )
    sizes = []
    for n in (2, 3):
        saved.clear()
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16),
        ):
            kept = student(torch.randn(n, 3, 64, 64))
        sizes.append(sum({pointer: size for pointer, size, _ in saved}.values()))
        del kept
    cost = plan.cost_of(on_meta(tiny_encoder(64)), "bat", RECIPE, 4)
    assert cost.tile == pytest.approx(sizes[1] - sizes[0], rel=0.05)


def test_the_demo_has_a_plan():
    text = plan.plan(load_profile("smoke"), "V100")
    assert (
        "4 slides, 48 spots, 2 held-out splits" in text
        and "V100 (15.7 TFLOP/s in float32: it has no bfloat16)" in text
        and "mini, bat" in text
    )
    assert text.count("align bat") == 4  # two splits, all, spots/0
    with pytest.raises(PekaError, match="'K80'; there are V100"):
        plan.plan(load_profile("smoke"), "K80")


def test_the_papers_kidney_has_a_plan(papers_index, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(
        plan, "meta_encoder", lambda name: on_meta(tiny_encoder(64))
    )  # the real one takes half a minute
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    profile = load_profile("hest-kidney", {"block": 8})
    text = plan.plan(profile)
    hours = 74_220 * plan.teacher_flops() / 0.35 / 3600 / 19.5e12  # float32 on an A100
    said = lambda text, name: next(
        line.split()[-2] for line in text.splitlines() if line.startswith(name)
    )
    assert said(text, "scFoundation in float32") == f"{hours:.2g}" and hours > 1
    half = plan.plan(load_profile("hest-kidney", {"block": 8, "precision": "bfloat16"}))
    assert said(half, "scFoundation in bfloat16") == f"{hours * 19.5 / 312:.2g}"
    for part in (
        "24 slides, 74,220 spots",
        "73,813",
        "13.0 GB",
        "align bat on all, h-optimus-0",
        "HF_TOKEN is not set",
        "gated, accept",
        "1.43 GB",
    ):
        assert part in text, part


def test_slides_that_are_left_out_are_not_paid_for(papers_index):
    whole, less = (
        plan._size(load_profile("hest-breast", {"leave_out": out}))[:2] for out in ([], ["TENX23"])
    )
    assert whole == (8, 30_543) and less == (7, 30_543 - 4_325)


def test_work_is_what_chapter_3_trains():
    profile = load_profile("hest-kidney-nested")
    work = list(plan.work_of(profile, 1000, 4))
    assert [what for what, *_ in work][1:] == [f"align bat on patients/{i}" for i in range(4)] + [
        "align bat on all",
        "align bat on spots/0",
    ]
    assert [trained for *_, trained, _ in work] == [0] + [50 * 750] * 4 + [50 * 1000, 50 * 800]
    full = list(plan.work_of(load_profile("hest-kidney-full"), 10, 4))
    assert {name for _, name, *_ in full} == {"h-optimus-0", "resnet50", "ctranspath", "uni"}
    assert (
        sum(method != "none" for _, _, method, *_ in full) == 6
    )  # PEKA, LoRA, AdaLoRA of two encoders


def test_the_plan_counts_the_projector_of_the_recipe():
    relu, gelu = (
        plan.cost_of(on_meta(tiny_encoder(64)), "bat", replace(RECIPE, projector=name), 4)
        for name in ("relu", "gelu")
    )
    assert (
        relu.step == gelu.step and relu.tile < gelu.tile
    )  # the same products; ReLU keeps its output alone for the backward pass


def test_a_tile_holds_more_where_there_is_no_bfloat16():
    half, full = (
        plan.cost_of(on_meta(tiny_encoder(64)), "bat", RECIPE, 4, bfloat16)
        for bfloat16 in (True, False)
    )
    assert 1.2 < full.tile / half.tile <= 2 and full.step == half.step


def test_without_the_index_a_plan_takes_the_known_counts_and_downloads_nothing(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("PEKA_MIRROR", raising=False)
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    slides, spots, splits, lines = plan._size(load_profile("hest-liver"))
    assert (slides, spots, splits) == (14, 64_152, 6) and "index is not here" in " ".join(lines)
    assert not (tmp_path / "cache").exists()


def test_a_block_that_divides_nothing_ends_in_one_message(monkeypatch, capsys):
    monkeypatch.setattr(plan, "meta_encoder", lambda name: on_meta(tiny_encoder(64)))
    assert main(["run", "smoke", "--plan", "-p", "block=7"]) == 1
    assert (
        "block size 7 does not divide" in (said := capsys.readouterr().err) and "-p block=" in said
    )


def test_the_share_of_the_peak_that_was_measured_is_in_the_benchmark():
    rows = (
        pd.read_csv(Path(__file__).parents[2] / "benchmarks" / "alignment.csv")
        .query("batch == 32")
        .set_index(["encoder", "method"])
    )
    shares = 100 * rows["tflop_per_s"] * 1e12 / plan.GPUS["H100"].bfloat16
    wanted = [("h-optimus-0", "bat"), ("uni", "bat"), ("h-optimus-0", "none")]
    assert [int(text) for text in re.findall(r"(\d+) %", plan.MEASURED)] == [
        round(shares[key]) for key in wanted
    ]


def test_weights_that_are_given_are_not_downloaded_and_have_to_be_there(tmp_path, capsys):
    run = ["run", "smoke", "--plan", "--weights"]
    assert (
        main([*run, f"mini={tmp_path / 'mine.pth'}"]) == 1
        and "no weights for encoder 'mini'" in capsys.readouterr().err
    )
    (tmp_path / "mine.pth").touch()
    assert (
        main([*run, f"mini={tmp_path / 'mine.pth'}"]) == 0
        and f"the file that is given ({tmp_path / 'mine.pth'})" in capsys.readouterr().out
    )
    assert (
        main([*run, f"uni={tmp_path / 'mine.pth'}"]) == 1
        and "this run has no encoder 'uni'" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("fixed", "tile", "said"),
    [(1e9, 1e8, "16 GB: fits"), (1e9, 1e9, "batch_size 14"), (18e9, 1e8, "at any batch_size")],
)
def test_memory_says_which_batch_fits(fixed, tile, said):
    cost = plan.StudentCost(1, 1, 1, int(fixed), int(tile))
    assert said in plan._memory("mini", "bat", cost, 32, 16, 0)


def test_ram_and_disk_are_counted_from_spots_genes_and_tables(monkeypatch, tmp_path):
    monkeypatch.delenv("PEKA_MIRROR", raising=False)
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path))
    monkeypatch.setattr(plan, "meta_encoder", lambda name: on_meta(tiny_encoder(64)))
    kidney, weights = (
        plan.needs(load_profile("hest-kidney")),
        4 * sum(p.numel() for p in tiny_encoder(64).model.parameters()),
    )
    spots, width, dim = 74_220, tiny_encoder(64).dim, plan.SCFOUNDATION["dim"]
    counts = spots * plan.TOKENS * plan.COUNT_PEAK + 4_992 * 18_000 * plan.DENSE_PEAK
    assert kidney.ram == pytest.approx(
        plan.PROCESS_GB + (weights + counts) / 1e9
    )  # its tiles are read from disk
    tables = 4 * spots * (width + width + dim)  # frozen features; bat's, with the projected ones
    assert kidney.runs == pytest.approx(plan.SMALL_GB + (tables + 4 * spots * dim * 3) / 1e9)
    assert (
        13 < kidney.downloads < 15
        and plan.needs(load_profile("hest-kidney"), {"h-optimus-0": "mine"}).downloads
        < kidney.downloads
    )
    demo = plan.needs(load_profile("demo"))
    assert (
        2.2 < demo.ram < 3 and demo.runs > 2400 * 150_528 / 1e9 and demo.downloads == 0
    )  # 2.35 GB were measured


def test_more_spots_and_more_tables_need_more():
    need = [plan.needs(load_profile("smoke", {"spots": n})) for n in (200, 2000, 8000)]
    assert need[0].ram < need[1].ram and need[0].runs < need[1].runs < need[2].runs
    assert (
        need[2].ram - need[1].ram < 4 * 6000 * 150_528 / 1e9
    )  # above the limit tiles stay on disk


def test_her2st_has_a_plan_before_its_cohort_is_built(capsys):
    assert main(["run", "her2st", "--plan"]) == 0
    said = capsys.readouterr().out
    assert (
        "5 slides, 1,892 spots, 6 held-out splits" in said
        and "profile: memory" in said
        and "profile: downloads" in said
    )


def test_a_cohort_directory_has_the_size_that_it_has(tiny_cohort):
    profile = SimpleNamespace(source="directory", source_options={"path": tiny_cohort})
    assert plan._size(profile)[:3] == (8, 96, 4)
