"""What a profile costs, before it is paid: slides, spots, GB, RAM and disk, FLOPs, hours on a GPU, memory by method, tokens, gates.

`peka run hest-kidney --plan`. Nothing is downloaded and no memory is taken: networks are built without their weights, and torch's
own counter counts what their products do. Hours are of the precision in which this package would run: training in bfloat16 where
the GPU has it, else float32; vision transformers embed alike, other encoders in float32. What one GPU reached of its plan is
`MEASURED`, from benchmarks/alignment.csv.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ..downloads.manifest import load_manifest
from ..encoders import Encoder, embeds_in_bfloat16
from ..errors import PekaError
from ..models import backbones, scfoundation
from ..models.encoder_files import BUNDLED, check_names, rows, whereabouts
from ..recipe import METHODS, Recipe, mixes_patients
from ..runner.profile import Profile
from ..runner.rungs import as_rung
from ..sources.hest_files import COUNT_BYTES, TILE_BYTES
from ..student import Student
from ..tiles import KEEP_IN_MEMORY


class Gpu(NamedTuple):
    """Peak of dense products in FLOP/s, 0 in a precision that it has not, and memory in GB; from the makers' data sheets."""

    bfloat16: float
    float32: float
    gb: int

    def peak(self, bfloat16: bool = True) -> float:
        """FLOP/s of work that may run in bfloat16, or may not."""
        return (self.bfloat16 if bfloat16 else 0) or self.float32


GPUS = {
    "V100": Gpu(0, 15.7e12, 32), "T4": Gpu(0, 8.1e12, 16), "L4": Gpu(121e12, 30.3e12, 24), "RTX4090": Gpu(165e12, 82.6e12, 24),
    "A100": Gpu(312e12, 19.5e12, 80), "H100": Gpu(989e12, 67e12, 80),
}  # fmt: skip
SHARE = 0.35  # of the peak that hours assume
MEASURED = "an H100 reached 27 % training H-optimus-0 and 20 % training UNI in batches of 32, and 33 % embedding"
TOKENS = 2_500  # expressed genes of a spot, for the teacher's cost: an assumption
SCFOUNDATION = {"width": 768, "layers": 12, "dim": 3072}
CONTEXT_GB = 1.0  # CUDA itself, and work space
PROCESS_GB = 1.9  # Python with torch, scanpy, figures, a small student in training: what `demo` measured (2.35) without its data
GENES = {"demo": 600, "her2st": 12_000}  # that a cohort measures; 18,000 elsewhere: an assumption
COUNT_PEAK = 48  # bytes in memory for each stored count while targets are made: 44 measured at 5,000 x 18,000, and the sections' own
DENSE_PEAK = 16  # bytes for each value of counts that are dense for a while: a section's, and all of the pca teacher's
TABLES_KEPT = 8  # features that chapters keep in memory at once (stages._read)
SMALL_GB = 0.3  # adapters, scores, notebooks and figures of a run
HER2ST_SPOTS = 13_620 / 36  # of a section
ATTENTION = {  # fused on the CPU, which the counter does not know
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
}  # fmt: skip


@dataclass(frozen=True)
class StudentCost:
    """Of one student: FLOPs and bytes.

    Attributes:
        forward: FLOPs of one tile through it, adapters included.
        step, batch: FLOPs of a training step: `step` for each tile, and `batch` whatever the number of tiles (Bat's W_g B_g).
        fixed: bytes that a training step holds whatever the batch: weights, and gradients and Adam's moments of what trains.
        tile: bytes that a tile of the batch holds between forward and backward.
    """

    forward: int
    step: int
    batch: int
    fixed: int
    tile: int


def cost_of(
    encoder: Encoder, method: str, recipe: Recipe, d_teacher: int, bfloat16: bool = True
) -> StudentCost:
    """Count a student's FLOPs and bytes.

    Args:
        encoder: with its network on the meta device.
        d_teacher: dimension of the teacher's space.
        bfloat16: whether the step runs under bfloat16 autocast, which halves much of what a tile holds.
    """
    student = Student(encoder, method, d_teacher, recipe)
    with FakeTensorMode(allow_non_fake_inputs=True):  # tensors with a shape and no memory
        student = student.to_empty(device="cpu")
        one, two = (torch.empty(n, 3, encoder.size, encoder.size) for n in (1, 2))
        (f1, f2), (s1, s2) = (
            [_flops(student, x, train) for x in (one, two)] for train in (False, True)
        )
        b1, b2 = (
            _saved_bytes(student, x, bfloat16) for x in (one, two)
        )  # weights cast to bfloat16 are there whatever the batch
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    fixed = 4 * sum(p.numel() for p in student.parameters()) + 12 * trained + 2 * b1 - b2
    return StudentCost(f2 - f1, s2 - s1, 2 * s1 - s2, fixed, b2 - b1)


def _flops(student: Student, x: torch.Tensor, train: bool) -> int:
    with (
        FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter,
        torch.set_grad_enabled(train),
    ):
        projected = student(x)[-1]
        if train and projected.requires_grad:
            projected.sum().backward()
    return counter.get_total_flops()


def _saved_bytes(student: Student, x: torch.Tensor, bfloat16: bool) -> int:
    """Bytes that autograd keeps for the backward pass, weights aside."""
    saved, weights = {}, {p.untyped_storage()._cdata for p in student.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
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
    for name in profile.encoders:
        yield "frozen features", name, "none", 0, spots
    for what, split, world in profile.alignments([f"patients/{i}" for i in range(splits)]):
        if world == "on":
            rung = as_rung(what)
            recipe = rung.change(profile.recipe).for_split(mixes_patients(split))
            share = 1.0 if split == "all" else 0.8 if mixes_patients(split) else 1 - 1 / splits
            trained = round(recipe.epochs * spots * share * (1 - recipe.set_aside))
            yield (
                f"align {rung.method} on {split}",
                rung.encoder or profile.encoder,
                rung.method,
                trained,
                spots,
            )


def plan(profile: Profile, gpu: str = "A100", weights: dict[str, str] | None = None) -> str:
    """The whole plan as text.

    Args:
        gpu: a name in `GPUS`.
        weights: files that the user gives instead of an encoder's own, by encoder.

    Raises:
        PekaError: an unknown GPU, unknown encoders or weights (`check_names`), or a source whose size is known only once its
            cohort is built.
    """
    from . import doctor

    if gpu not in GPUS:
        raise PekaError(f"no peak is known of GPU {gpu!r}; there are {', '.join(GPUS)}")
    card, weights = GPUS[gpu], weights or {}
    check_names(profile.encoders, weights)
    slides, spots, splits, lines = _size(profile)
    dim = _teacher_dim(profile)
    work = list(work_of(profile, spots, splits))
    encoders = {name: meta_encoder(name) for name in dict.fromkeys(name for _, name, *_ in work)}
    costs = {
        (name, method): cost_of(encoders[name], method, profile.recipe, dim, card.bfloat16 > 0)
        for name, method in dict.fromkeys(w[1:3] for w in work)
    }
    targets = 4 * spots * dim  # X_teacher lies on the device whole
    memory = [
        _memory(name, method, cost, profile.recipe.batch_size, card.gb, targets)
        for (name, method), cost in costs.items() if method != "none"
    ]  # fmt: skip
    full = f"{card.float32 / 1e12:.1f}"
    peaks = f"{card.bfloat16 / 1e12:.0f} TFLOP/s in bfloat16, {full} in float32"
    peaks = peaks if card.bfloat16 else f"{full} TFLOP/s in float32: it has no bfloat16"
    return "\n".join([
        f"{profile.name}: {profile.title}", f"cohort: {slides} slides, {spots:,} spots, {splits} held-out splits", *lines,
        f"\nhours at {SHARE:.0%} of the peak of {gpu} ({peaks}); head and figures on the CPU come on top",
        f"({MEASURED}: training takes 1.3 to 1.7 times these hours)",
        *_hours(profile, work, encoders, costs, spots, card),
        "\nmemory and disk of this machine", *(f"{state:<8} {name:<18} {found}" for state, name, found in doctor.room(profile, weights)),
        "\nmemory of a training step", *(memory or ["nothing is trained"]),
        "\ntokens, gates and weights", *_gates(profile, encoders, weights),
    ])  # fmt: skip


class Needs(NamedTuple):
    """GB that a run takes, estimated: RAM of its process, what it leaves under runs/, what is downloaded once and kept."""

    ram: float
    runs: float
    downloads: float


def needs(profile: Profile, weights: dict[str, str] | None = None) -> Needs:
    """RAM and disk of a profile at n spots x G genes.

    RAM: the process, the networks in float32, all tiles where they stay in memory (below `KEEP_IN_MEMORY`), and the larger of two
    moments. Counts: `TOKENS` stored counts a spot while targets are made, and a dense section (for the pca teacher all spots).
    Features: the tables that chapters keep, and two more while a head is fitted. Training on the CPU comes on top.

    Raises:
        PekaError: as `plan`.
    """
    slides, spots, splits, _ = _size(profile)
    dim, genes, work = (
        _teacher_dim(profile),
        GENES.get(profile.source, 18_000),
        list(work_of(profile, spots, splits)),
    )
    encoders = {name: meta_encoder(name) for name in dict.fromkeys(name for _, name, *_ in work)}
    networks = {
        name: 4 * sum(p.numel() for p in encoder.model.parameters())
        for name, encoder in encoders.items()
    }
    tables = [
        4 * spots * (encoders[name].dim + (method != "none") * dim) for _, name, method, *_ in work
    ]
    tiles = spots * TILE_BYTES
    stored, section = spots * min(TOKENS, genes), min(4_992, 3 * spots // slides)
    dense = genes * (spots if profile.teacher == "pca" else section)
    moments = (
        stored * COUNT_PEAK + dense * DENSE_PEAK,
        stored * 16 + (min(TABLES_KEPT, len(tables)) + 2) * max(tables),
    )
    ram = max(networks.values()) + (tiles if tiles < KEEP_IN_MEMORY else 0) + max(moments)
    drawn = 0 if profile.source == "hest" else tiles + stored * 8  # HEST's are linked
    runs = drawn + sum(tables) + 4 * spots * dim * (1 + len(work))
    return Needs(
        ram / 1e9 + PROCESS_GB,
        runs / 1e9 + SMALL_GB,
        _downloads(profile, spots, networks, weights or {}) / 1e9,
    )


def _downloads(
    profile: Profile, spots: int, networks: dict[str, int], weights: dict[str, str]
) -> int:
    """Bytes of slides, networks and teacher that come over the network, where none of it is here yet."""
    total = sum(
        size
        for name, size in networks.items()
        if name in rows() and name not in weights and not whereabouts(rows()[name])[0]
    )
    if profile.source == "hest":
        total += spots * (TILE_BYTES + COUNT_BYTES)
    if profile.source == "her2st":
        total += sum(facts.get("size", 0) for facts in _her2st_files(profile).values())
    if profile.teacher == "scfoundation":
        total += load_manifest()["sources"]["scfoundation"]["files"][
            scfoundation.FILES["checkpoint"]
        ]["size"]
    return total


def _her2st_files(profile: Profile) -> dict[str, dict]:
    """Manifest entries of a profile's sections of her2st."""
    from ..sources import her2st

    files = load_manifest()["sources"]["her2st"]["files"]
    sections = her2st._names(profile.source_options.get("sections", her2st.SECTIONS))
    return {path: files[path] for section in sections for path in her2st._paths(section).values()}


def _teacher_dim(profile: Profile) -> int:
    return (
        SCFOUNDATION["dim"]
        if profile.teacher == "scfoundation"
        else profile.teacher_options["n_components"]
    )


def _hours(
    profile: Profile, work: list, encoders: dict, costs: dict, spots: int, card: Gpu
) -> list[str]:
    """FLOPs and hours of each piece of `work_of`, of the teacher, and of all together."""
    table = []  # what, FLOPs, seconds at the whole peak
    for what, name, method, trained, embedded in work:
        cost = costs[name, method]
        learn, look = (
            trained * cost.step + trained / profile.recipe.batch_size * cost.batch,
            embedded * cost.forward,
        )
        seconds = learn / card.peak() + look / card.peak(
            embeds_in_bfloat16(name, encoders[name].model)
        )
        table.append((f"{what}, {name}", learn + look, seconds))
    if profile.teacher == "scfoundation":
        precision, flops = (
            profile.teacher_options.get("precision", "float32"),
            spots * teacher_flops(),
        )
        title = f"scFoundation in {precision}, {TOKENS} genes a spot assumed"
        table.append((title, flops, flops / card.peak(precision == "bfloat16")))
    table.append(
        ("together", sum(flops for _, flops, _ in table), sum(seconds for *_, seconds in table))
    )
    return [
        f"{title:<56} {f'{flops / 1e15:,.3g}':>10} PFLOP {f'{seconds / SHARE / 3600:.2g}':>8} h"
        for title, flops, seconds in table
    ]


def meta_encoder(name: str) -> Encoder:
    """An encoder by name without its weights, on the meta device: a row of the manifest, or `mini`."""
    if name in BUNDLED:
        from ..models.mini import build_mini

        with torch.device("meta"):
            model = build_mini(0)
        return Encoder(
            name,
            model.requires_grad_(False).eval(),
            (0.5,) * 3,
            (0.5,) * 3,
            model.num_features,
            device="meta",
        )
    if name not in rows():
        raise PekaError(
            f"no plan for encoder {name!r}: it is no row of data_manifest.yaml; there are {', '.join(rows())}"
        )
    row = rows()[name]
    with torch.device("meta"):  # a second, not half a minute of drawing numbers
        model = backbones.build(row)
    model = model.requires_grad_(False).to("meta")
    return Encoder(
        name,
        model,
        (0.5,) * 3,
        (0.5,) * 3,
        row.dim,
        row.transform["crop"],
        None,
        pool=row.pooling,
        device="meta",
    )


def _size(profile: Profile) -> tuple[int, int, int, list[str]]:
    """Slides, spots, held-out splits, and lines on what is downloaded and kept."""
    options = profile.source_options
    if profile.source == "demo":
        from ..drawn import demo

        options = {
            name: p.default for name, p in inspect.signature(demo.build).parameters.items()
        } | options
        return (
            (n := options["patients"] * options["sections"]),
            n * options["spots"],
            options["folds"],
            ["nothing to download"],
        )
    if profile.source == "directory":
        from ..sources.directory import preflight

        cohort = preflight(options["path"])
        return (
            len(cohort.samples),
            len(cohort),
            len(cohort.split_ids),
            [f"nothing to download: the run links to {options['path']}"],
        )
    if profile.source == "her2st":
        from ..sources import her2st

        sections = her2st._names(options.get("sections", her2st.SECTIONS))
        known = [
            "spots: about 378 a section, of which few are dropped; the number is known once the cohort is built"
        ]
        return (
            len(sections),
            round(HER2ST_SPOTS * len(sections)),
            len(her2st.make_splits(sections)),
            known,
        )
    if profile.source != "hest":
        raise PekaError(
            f"{profile.name}: the spots of source {profile.source} are known once its cohort is built: peka fetch shows its files"
        )
    from ..sources import hest

    cohort = options.get("cohort", "breast")
    rules, own = hest.COHORTS[cohort], [options.get(name, "") for name in ("index", "index_sha256")]
    if own[0] or hest.index_place().exists():  # an index of one's own is never downloaded
        table = hest.without(
            hest.slides(cohort, *own, options.get("counts")), options.get("leave_out", ())
        )
        slides, spots = len(table), int(table["spots"].sum())
        whose = hest.groups(table, options.get("unknown", "slide"))
        splits, known = (
            len(hest.make_splits(whose, dict(table["spots"]), options.get("folds", 6))),
            [],
        )
    else:
        slides, spots, splits = rules.slides, rules.spots, options.get("folds", 6)
        known = [
            f"HEST-1k's index is not here (peka fetch {profile.name} brings it): counts as known of v1_1_0, {splits} splits at "
            "most, no slide left out"
        ]
    lines = [
        f"the paper's n of this cohort: {rules.n_paper:,}",
        *known,
        f"to download and keep: about {spots * (TILE_BYTES + COUNT_BYTES) / 1e9:.1f} GB of slides ({TILE_BYTES / 1e3:.0f} kB a "
        f"tile, {COUNT_BYTES / 1e3:.0f} kB of counts a spot; an estimate: peka fetch {profile.name} --dry-run asks the hub), linked "
        "into the cohort, not copied; weights below",
    ]
    return slides, spots, splits, lines


def _memory(name: str, method: str, cost: StudentCost, batch: int, gb: float, targets: int) -> str:
    fixed = cost.fixed + targets
    need = (fixed + batch * cost.tile) / 1e9 + CONTEXT_GB
    room = int((gb - CONTEXT_GB) * 1e9 - fixed) // cost.tile
    fits = (
        "fits"
        if need < gb
        else f"does not fit: batch_size {room}"
        if room > 0
        else "does not fit at any batch_size"
    )
    return f"{name}, {method} ({METHODS[method].split(',')[0]}), batch {batch}: about {need:.1f} GB; {gb} GB: {fits}"


def _gates(profile: Profile, encoders: dict[str, Encoder], weights: dict[str, str]) -> list[str]:
    """Tokens, and of each encoder its terms, size and place."""
    from huggingface_hub import get_token

    lines = [
        "a token for the hub is here"
        if get_token()
        else "HF_TOKEN is not set, and nobody is logged in to the hub"
    ]
    if profile.source == "hest":
        lines.append("HEST-1k: gated, granted at once, CC BY-NC-SA 4.0")
    for name, encoder in encoders.items():
        where = "in the package"
        if name in weights:
            where = f"the file that is given ({weights[name]})"
        elif name in rows():
            gb = 4 * sum(p.numel() for p in encoder.model.parameters()) / 1e9  # float32
            where = f"{rows()[name].terms}; about {gb:.2f} GB, {whereabouts(rows()[name])[1]}"
        lines.append(f"{name}: {where}")
    if profile.teacher == "scfoundation":
        size = load_manifest()["sources"]["scfoundation"]["files"][
            scfoundation.FILES["checkpoint"]
        ]["size"]
        lines.append(
            f"scfoundation: weights for non-commercial research, {size / 1e9:.2f} GB, no gate"
        )
    return lines
