"""What a profile costs, before it is paid: slides, spots, GB, FLOPs, hours on a GPU, memory by method, tokens and gates.

`peka run hest-kidney --plan`. Nothing is downloaded and no memory is taken: networks are built without their weights, and torch's
own counter counts what their products do. No plan was compared with a GPU yet.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from . import backbones, scfoundation
from .encoder_files import rows, whereabouts
from .encoders import Encoder
from .files import PekaError
from .ladder import METHODS, as_rung
from .manifest import load_manifest
from .profile import Profile
from .recipe import Recipe
from .student import Student

GPUS = {  # dense products in half precision, FLOP/s, and GB, from the makers' data sheets
    "V100": (112e12, 32), "T4": (65e12, 16), "L4": (121e12, 24), "RTX4090": (165e12, 24), "A100": (312e12, 80), "H100": (989e12, 80),
}  # fmt: skip
SHARE = 0.35  # of the peak that training reaches
TOKENS = 2_500  # expressed genes of a spot, for the teacher's cost: an assumption
SCFOUNDATION = {"width": 768, "layers": 12, "dim": 3072}
CONTEXT_GB = 1.0  # CUDA itself, and work space
ATTENTION = {  # fused on the CPU, which the counter does not know
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v),
}


@dataclass(frozen=True)
class Cost:
    """Of one student: FLOPs and bytes.

    Attributes:
        forward: FLOPs of one tile through it, adapters included.
        step, batch: FLOPs of a training step: `step` for each tile, and `batch` whatever the number of tiles (Bat's W_g B_g).
        fixed: bytes that a training step holds whatever the batch: weights, and gradients and Adam's moments of what trains.
        tile: bytes that a tile of the batch holds between forward and backward, under bfloat16 autocast.
    """

    forward: int
    step: int
    batch: int
    fixed: int
    tile: int


def cost_of(encoder: Encoder, method: str, recipe: Recipe, d_teacher: int) -> Cost:
    """Count a student's FLOPs and bytes.

    Args:
        encoder: with its network on the meta device.
        d_teacher: dimension of the teacher's space.
    """
    student = Student(encoder, method, d_teacher, recipe)
    with FakeTensorMode(allow_non_fake_inputs=True):  # tensors with a shape and no memory
        student = student.to_empty(device="cpu")
        one, two = (torch.empty(n, 3, encoder.size, encoder.size) for n in (1, 2))
        (f1, f2), (s1, s2) = ([_flops(student, x, train) for x in (one, two)] for train in (False, True))
        b1, b2 = (_saved_bytes(student, x) for x in (one, two))  # weights cast to bfloat16 are there whatever the batch
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    fixed = 4 * sum(p.numel() for p in student.parameters()) + 12 * trained + 2 * b1 - b2
    return Cost(f2 - f1, s2 - s1, 2 * s1 - s2, fixed, b2 - b1)


def _flops(student: Student, x: torch.Tensor, train: bool) -> int:
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter, torch.set_grad_enabled(train):
        projected = student(x)[-1]
        if train and projected.requires_grad:
            projected.sum().backward()
    return counter.get_total_flops()


def _saved_bytes(student: Student, x: torch.Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, weights aside."""
    saved, weights = {}, {p.untyped_storage()._cdata for p in student.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        student(x)
    return sum(size for storage, size in saved.items() if storage not in weights)


def teacher_flops(tokens: int = TOKENS) -> int:
    """FLOPs of one spot through scFoundation's encoder: 24 L d^2 + 4 L^2 d a layer."""
    d = SCFOUNDATION["width"]
    return SCFOUNDATION["layers"] * (24 * tokens * d**2 + 4 * tokens**2 * d)


def work_of(profile: Profile, spots: int, splits: int) -> Iterator[tuple[str, str, str, int, int]]:
    """(what, encoder, method, tiles trained on, tiles embedded) of what a profile aligns and embeds.

    Left out: the demo's other worlds, chapter 3's small examples, and the spots set aside, which are only looked at.
    """
    recipe = profile.recipe
    for name in dict.fromkeys([profile.encoder, *(rung.encoder or profile.encoder for rung in profile.others)]):
        yield "frozen features", name, "none", 0, spots
    for what, split, world in profile.alignments([f"patients/{i}" for i in range(splits)]):
        if world == "on":
            rung = as_rung(what)
            shuffled = split == "all" or split.startswith("spots/")
            share = 1.0 if split == "all" else 0.8 if shuffled else 1 - 1 / splits
            aside = 0.0 if shuffled and recipe.set_aside_by == "group" else recipe.set_aside
            trained = round(recipe.epochs * spots * share * (1 - aside))
            yield f"align {rung.method} on {split}", rung.encoder or profile.encoder, rung.method, trained, spots


def plan(profile: Profile, gpu: str = "A100") -> str:
    """The whole plan as text.

    Raises:
        PekaError: an unknown GPU, or a source whose size is known only once its cohort is built.
    """
    if gpu not in GPUS:
        raise PekaError(f"no peak is known of GPU {gpu!r}; there are {', '.join(GPUS)}")
    slides, spots, splits, lines = _size(profile)
    peak, gb = GPUS[gpu]
    dim = SCFOUNDATION["dim"] if profile.teacher == "scfoundation" else profile.teacher_options["n_components"]
    encoders = {name: meta_encoder(name) for name in dict.fromkeys(e for _, e, _, _, _ in work_of(profile, spots, splits))}
    costs = {}
    table = []
    for what, name, method, tiles, embedded in work_of(profile, spots, splits):
        if (name, method) not in costs:
            costs[name, method] = cost_of(encoders[name], method, profile.recipe, dim)
        cost = costs[name, method]
        flops = tiles * cost.step + tiles / profile.recipe.batch_size * cost.batch + embedded * cost.forward
        table.append((f"{what}, {name}", flops))
    if profile.teacher == "scfoundation":
        table.append((f"scFoundation, {TOKENS} genes a spot assumed", spots * teacher_flops()))
    table.append(("together", sum(flops for _, flops in table)))
    hours = [f"{title:<52} {flops / 1e15:>10,.3g} PFLOP {flops / (SHARE * peak) / 3600:>8.2g} h" for title, flops in table]
    targets = 4 * spots * dim  # X_teacher lies on the device whole
    trained = {key: cost for key, cost in costs.items() if key[1] != "none"}
    memory = [_memory(*key, cost, profile.recipe.batch_size, gb, targets) for key, cost in trained.items()]
    return "\n".join([
        f"{profile.name}: {profile.title}", f"cohort: {slides} slides, {spots:,} spots, {splits} held-out splits", *lines,
        f"\nhours at {SHARE:.0%} of the peak of {gpu} ({peak / 1e12:.0f} TFLOP/s in half precision); "
        "head and figures on the CPU come on top", *hours, "\nmemory of a training step", *(memory or ["nothing is trained"]), "\ntokens and gates", *_gates(profile, encoders),
    ])  # fmt: skip


def meta_encoder(name: str) -> Encoder:
    """An encoder by name without its weights, on the meta device: a row of the manifest, or `mini`."""
    if name in ("mini", "random"):
        from .mini import build_mini

        with torch.device("meta"):
            model = build_mini(0)
        return Encoder(name, model.requires_grad_(False).eval(), (0.5,) * 3, (0.5,) * 3, model.num_features, device="meta")
    if name not in rows():
        raise PekaError(f"no plan for encoder {name!r}: it is no row of data_manifest.yaml; there are {', '.join(rows())}")
    row = rows()[name]
    model = backbones.build(row).requires_grad_(False).to("meta")
    return Encoder(name, model, (0.5,) * 3, (0.5,) * 3, row.dim, row.transform["crop"], None, pool=row.pooling, device="meta")


def _size(profile: Profile) -> tuple[int, int, int, list[str]]:
    """Slides, spots, held-out splits, and lines on what is downloaded and kept."""
    options = profile.source_options
    if profile.source == "demo":
        return (n := options["patients"] * options["sections"]), n * options["spots"], options["folds"], ["nothing to download"]
    if profile.source != "hest":
        raise PekaError(f"{profile.name}: the spots of source {profile.source} are known once its cohort is built: peka fetch shows its files")
    from .sources import hest
    from .sources.hest_files import COUNT_BYTES, TILE_BYTES

    table = hest.slides(options["cohort"], *(options.get(name, "") for name in ("index", "index_sha256")), options.get("counts"))
    table = hest.without(table, options.get("leave_out", ()))
    spots, paper = int(table["spots"].sum()), hest.COHORTS[options["cohort"]].n_paper
    splits = len(hest.make_splits(hest.groups(table, options.get("unknown", "slide")), dict(table["spots"]), options.get("folds", 6)))
    gb = spots * (TILE_BYTES + COUNT_BYTES) / 1e9
    lines = [
        f"the paper's n of this cohort: {paper:,}",
        f"to download and keep: about {gb:.1f} GB ({TILE_BYTES / 1e3:.0f} kB a tile, {COUNT_BYTES / 1e3:.0f} kB of counts a spot; an estimate: "
        f"peka fetch {profile.name} --dry-run asks the hub), linked into the cohort, not copied",
    ]
    return len(table), spots, splits, lines


def _memory(name: str, method: str, cost: Cost, batch: int, gb: float, targets: int) -> str:
    fixed = cost.fixed + targets
    need = (fixed + batch * cost.tile) / 1e9 + CONTEXT_GB
    fits = "fits" if need < gb else f"does not fit: batch_size {max(0, int((gb - CONTEXT_GB) * 1e9 - fixed) // cost.tile)}"
    return f"{name}, {method} ({METHODS[method].split(',')[0]}), batch {batch}: about {need:.1f} GB; {gb} GB: {fits}"


def _gates(profile: Profile, encoders: dict[str, Encoder]) -> list[str]:
    lines = [f"HF_TOKEN is {'set' if os.environ.get('HF_TOKEN') else 'not set'}"]
    if profile.source == "hest":
        lines.append("HEST-1k: gated, granted at once, CC BY-NC-SA 4.0")
    for name in encoders:
        lines.append(f"{name}: {rows()[name].terms}; {whereabouts(rows()[name])[1]}" if name in rows() else f"{name}: in the package")
    if profile.teacher == "scfoundation":
        size = load_manifest()["sources"]["scfoundation"]["files"][scfoundation.FILES["checkpoint"]]["size"]
        lines.append(f"scfoundation: weights for non-commercial research, {size / 1e9:.2f} GB, no gate")
    return lines
