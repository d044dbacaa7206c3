"""What a profile costs: FLOPs, hours on a GPU, memory by method, tokens and gates.

`peka run hest-kidney --plan` prints it. Networks are built without weights, and torch's counter
counts their products. Training and vision transformers run in bfloat16 if the GPU has it, and
otherwise in float32; other encoders embed in float32. `MEASURED` is the share of the peak that one
GPU reached (benchmarks/alignment.csv).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ..bone import last
from ..common.errors import PekaError
from ..encoders import Encoder, embeds_in_bfloat16
from ..models import own_file
from ..models.encoder_files import check_names, location, manifest_entries
from ..models.scvi import MAX_EPOCHS
from ..recipe import METHODS, Recipe
from ..runner.profile import Profile
from ..student import Student
from ..teachers import TEACHERS
from .doctor import room
from .needs import (
    GENES,
    OTHER_GENES,
    TOKENS,
    Work,
    bytes_of,
    cpu_hours,
    meta_encoder,
    size_of,
    teacher_bytes,
    teacher_dim,
    token_bytes,
    work_of,
)


class Gpu(NamedTuple):
    """Peak of dense products in FLOP/s (0 if the GPU lacks the precision) and memory in GB.

    The values are from the makers' data sheets.
    """

    bfloat16: float
    float32: float
    gb: int

    def peak(self, bfloat16: bool = True) -> float:
        """FLOP/s of work that may run in bfloat16, or that may not."""
        return (self.bfloat16 if bfloat16 else 0) or self.float32


GPUS = {
    "V100": Gpu(0, 15.7e12, 32),
    "T4": Gpu(0, 8.1e12, 16),
    "L4": Gpu(121e12, 30.3e12, 24),
    "RTX4090": Gpu(165e12, 82.6e12, 24),
    "A100": Gpu(312e12, 19.5e12, 80),
    "H100": Gpu(989e12, 67e12, 80),
}
SHARE = 0.35  # of the peak that hours assume
MEASURED = (
    "an H100 reached 27 % training H-optimus-0 and 20 % training UNI in batches of 32, "
    "and 33 % embedding"
)
TEACHER_NETWORKS = {  # title, width, hidden width and layers of teachers (models) whose cost counts
    "scfoundation": ("scFoundation", 768, 4 * 768, 12),
    "scgpt": ("scGPT", 512, 512, 12),
    "geneformer": ("Geneformer V2-104M", 768, 4 * 768, 12),
    "V1-10M": ("Geneformer V1-10M", 256, 2 * 256, 6),
    "V2-316M": ("Geneformer V2-316M", 1152, 4 * 1152, 18),
}
SCVI_SECONDS = (35e-6, 1.4e-7)  # of a spot and epoch on one core; more for each gene (measured)
CONTEXT_GB = 1.0  # CUDA itself, and its workspace
_aten = torch.ops.aten
ATTENTION = {  # fused attention on the CPU, which the counter does not know
    _aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
    ),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


@dataclass(frozen=True)
class StudentCost:
    """FLOPs and bytes of one student.

    Attributes:
        forward: FLOPs of one tile, with the adapters.
        step: FLOPs of a training step for each tile, without `frozen`.
        batch: FLOPs of a training step that do not depend on the number of tiles (Bat's W_g B_g).
        fixed: bytes of weights, gradients and Adam's moments, which do not depend on the batch.
        tile: bytes that each tile of the batch needs between forward and backward.
        frozen: FLOPs of a tile below the last blocks, once in each orientation (`last_blocks`).
    """

    forward: int
    step: int
    batch: int
    fixed: int
    tile: int
    frozen: int = 0


def cost_of(
    encoder: Encoder, method: str, recipe: Recipe, d_teacher: int, bfloat16: bool = True
) -> StudentCost:
    """Count a student's FLOPs and bytes.

    Args:
        encoder: an encoder with its network on the meta device.
        d_teacher: dimension of the teacher's space.
        bfloat16: whether the step runs under bfloat16 autocast, which needs fewer bytes a tile.
    """
    student = Student(encoder, method, d_teacher, recipe)
    with FakeTensorMode(allow_non_fake_inputs=True):  # tensors with a shape and no memory
        student = student.to_empty(device="cpu")
        one, two = (torch.empty(n, 3, encoder.size, encoder.size) for n in (1, 2))
        f1, f2 = (_flops(student, x, train=False) for x in (one, two))
        s1, s2 = (_flops(student, x, train=True) for x in (one, two))
        b1, b2 = (_saved_bytes(student, x, bfloat16) for x in (one, two))
        frozen = _frozen_flops(student, two) - _frozen_flops(student, one)
    # b1 and b2 both hold the weights that were cast to bfloat16
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    fixed = 4 * sum(p.numel() for p in student.parameters()) + 12 * trained + 2 * b1 - b2
    return StudentCost(f2 - f1, s2 - s1 - frozen, 2 * s1 - s2, fixed, b2 - b1, frozen)


def _flops(student: Student, x: torch.Tensor, train: bool) -> int:
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    with counter, torch.set_grad_enabled(train):
        projected = student.encode(x)[-1]
        if train and projected.requires_grad:
            projected.sum().backward()
    return counter.get_total_flops()


def _frozen_flops(student: Student, x: torch.Tensor) -> int:
    """FLOPs below the last blocks; 0 if all blocks have an adapter."""
    if not student.recipe.last_blocks or student.method == "none":
        return 0
    counter, seen = FlopCounterMode(display=False, custom_mapping=ATTENTION), []
    first = last(student.network, student.recipe.last_blocks)[0]
    hook = first.register_forward_pre_hook(lambda *_: seen.append(counter.get_total_flops()))
    with counter, torch.no_grad():
        student.encode(x)
    hook.remove()
    return seen[0]


def _saved_bytes(student: Student, x: torch.Tensor, bfloat16: bool) -> int:
    """Bytes that autograd keeps for the backward pass, without the weights."""
    saved, weights = {}, {p.untyped_storage()._cdata for p in student.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        student.encode(x)
    return sum(size for storage, size in saved.items() if storage not in weights)


def teacher_flops(model: str = "scfoundation", tokens: int = TOKENS) -> int:
    """FLOPs of one spot through a teacher's encoder: L (8 d^2 + 4 d h) + 4 L^2 d a layer."""
    _, d, hidden, layers = TEACHER_NETWORKS[model]
    return layers * (tokens * (8 * d**2 + 4 * d * hidden) + 4 * tokens**2 * d)


def plan(profile: Profile, gpu: str = "A100", weights: dict[str, str] | None = None) -> str:
    """The whole plan as text.

    Args:
        gpu: a name in `GPUS`.
        weights: the user's own files by encoder.

    Raises:
        PekaError: the GPU, an encoder or weights are unknown (`check_names`), or the size of the
            cohort is not known yet (`size_of`).
    """
    if gpu not in GPUS:
        raise PekaError(
            f"peka plan does not know the speed of GPU {gpu!r}; choose one of {', '.join(GPUS)}"
        )
    card, weights = GPUS[gpu], weights or {}
    check_names(profile.encoders, weights)
    slides, spots, splits, lines, *_ = size_of(profile)
    dim, work = teacher_dim(profile), list(work_of(profile, spots, splits))
    encoders = {name: meta_encoder(name) for name in dict.fromkeys(w.encoder for w in work)}
    costs = {
        (name, method, blocks): cost_of(
            encoders[name], method, replace(profile.recipe, last_blocks=blocks), dim,
            card.bfloat16 > 0,
        )
        for name, method, blocks in dict.fromkeys(map(_student_of, work))
    }  # fmt: skip
    fixed = 4 * spots * dim  # X_teacher lies on the device whole
    batch = profile.recipe.batch_size
    memory = [
        f"{name}, {method} ({METHODS[method].split(',')[0]}){_blocks(blocks)}, batch {batch}: "
        + fit(cost, batch, card.gb, fixed)
        for (name, method, blocks), cost in costs.items()
        if method != "none"
    ]
    checks = (f"{state:<8} {name:<18} {found}" for state, name, found in room(profile, weights))
    full = f"{card.float32 / 1e12:.1f}"
    peaks = f"{card.bfloat16 / 1e12:.0f} TFLOP/s in bfloat16, {full} in float32"
    peaks = peaks if card.bfloat16 else f"{full} TFLOP/s in float32: it has no bfloat16"
    return "\n".join(
        (
            f"{profile.name}: {profile.title}",
            f"cohort: {slides} slides, {spots:,} spots, {splits} held-out splits",
            *lines,
            f"\nhours at {SHARE:.0%} of the peak of {gpu} ({peaks}), without head and figures",
            f"({MEASURED}: training takes 1.3 to 1.7 times these hours)",
            *_hours(profile, work, encoders, costs, card),
            *_scvi_minutes(profile, spots),
            "\nmemory and disk of this machine",
            *checks,
            "\nmemory of a training step",
            *(memory or ["nothing is trained"]),
            *_tokens(profile, work, encoders, costs, card),
            "\ntokens, gates and weights",
            *_gates(profile, encoders, weights),
        )
    )


def _hours(profile: Profile, work: list, encoders: dict, costs: dict, card: Gpu) -> list[str]:
    """FLOPs and hours of each piece of `work_of`, of the teacher, and of all together."""
    table = []  # what, FLOPs, seconds at the whole peak
    for w in work:
        cost = costs[_student_of(w)]
        found = cost_of_work(w, profile.recipe, encoders[w.encoder], cost, card)
        table.append((f"{w.what}{_blocks(w.last_blocks)}, {w.encoder}", *found))
    if found := cost_of_teacher(profile, work[0].embedded, card):
        table.append(found)
    table.append(("together", sum(row[1] for row in table), sum(row[2] for row in table)))
    hours = cpu_hours(profile, table[-1][1])
    cpu = f"on the CPU of this machine, all chapters, if it is quiet: about {hours:.2g} h"
    return [
        f"{title:<56} {f'{flops / 1e15:,.3g}':>10} PFLOP {f'{seconds / SHARE / 3600:.2g}':>8} h"
        for title, flops, seconds in table
    ] + [cpu]


def cost_of_work(
    work: Work, recipe: Recipe, encoder: Encoder, cost: StudentCost, card: Gpu
) -> tuple[float, float]:
    """FLOPs of a piece of work, and its seconds at the whole peak of a GPU."""
    half = embeds_in_bfloat16(work.encoder, encoder.model)
    learn = work.trained * cost.step + work.trained / recipe.batch_size * cost.batch
    learn += work.tokens * cost.frozen
    embed = work.embedded * cost.forward
    return learn + embed, learn / card.peak() + embed / card.peak(half)


def cost_of_teacher(profile: Profile, spots: int, card: Gpu) -> tuple[str, float, float] | None:
    """Title, FLOPs and seconds at the whole peak of a teacher; None if its network is small."""
    if profile.teacher not in TEACHER_NETWORKS:
        return None
    options = profile.teacher_options
    precision = options.get("precision", "float32")
    longest = getattr(TEACHERS[profile.teacher], "max_length", TOKENS)
    tokens = min(TOKENS, options.get("max_length", longest))
    model = options.get("model")
    model = model if model in TEACHER_NETWORKS else profile.teacher
    flops = spots * teacher_flops(model, tokens)
    name = TEACHER_NETWORKS[model][0]
    title = f"{name} in {precision}, {tokens} genes a spot assumed"
    return title, flops, flops / card.peak(precision == "bfloat16")


def scvi_seconds(profile: Profile, spots: int) -> float:
    """Seconds in which one core trains the teacher scvi on all spots; 0 for other teachers."""
    if profile.teacher != "scvi":
        return 0.0
    epochs, (base, each) = profile.teacher_options.get("max_epochs", MAX_EPOCHS), SCVI_SECONDS
    return spots * epochs * (base + each * GENES.get(profile.source, OTHER_GENES))


def _student_of(work: Work) -> tuple[str, str, int]:
    """What decides the cost of a piece of work: encoder, method and last_blocks."""
    return work.encoder, work.method, work.last_blocks


def _blocks(last_blocks: int) -> str:
    return f", last {last_blocks} blocks" if last_blocks else ""


def _tokens(profile: Profile, work: list, encoders: dict, costs: dict, card: Gpu) -> list[str]:
    """Disk and time of the tokens below the last blocks; nothing if all blocks have an adapter."""
    half, lines = card.bfloat16 > 0, []
    for student in dict.fromkeys(_student_of(w) for w in work if w.last_blocks):
        most = max((w for w in work if _student_of(w) == student), key=lambda w: w.tokens)
        size = token_bytes(most, encoders[most.encoder], half)
        hours = most.tokens * costs[student].frozen / card.peak() / SHARE / 3600
        flips = ", one for each orientation that is drawn" if profile.recipe.flips else ""
        lines.append(
            f"{most.encoder}, {most.method}{_blocks(most.last_blocks)}: {size / 1e9:,.3g} GB, "
            f"{size / most.tokens / 1e6:.2f} MB a tile{flips}; {hours:.2g} of the hours above"
        )
    title = "\ntokens on the disk while an alignment runs, at most"
    return [title, *dict.fromkeys(lines)] if lines else []


def _scvi_minutes(profile: Profile, spots: int) -> list[str]:
    """A line with the minutes of the teacher scvi, which is trained on a CPU; none for others."""
    if not (seconds := scvi_seconds(profile, spots)):
        return []
    epochs = profile.teacher_options.get("max_epochs", MAX_EPOCHS)
    most = f"at most {seconds / 60:,.1f} minutes on one core for each set of training spots"
    return [f"the teacher scvi, {epochs} epochs: {most}"]


def fit(cost: StudentCost, batch: int, gb: float, beside: int) -> str:
    """Say whether a training step fits into `gb` of memory, and which batch size would.

    Args:
        beside: bytes on the GPU that do not belong to the student.
    """
    fixed = cost.fixed + beside
    need = (fixed + batch * cost.tile) / 1e9 + CONTEXT_GB
    room = int((gb - CONTEXT_GB) * 1e9 - fixed) // cost.tile
    fits = "fits" if need < gb else f"does not fit; batch_size {room} does"
    if need >= gb and room <= 0:
        fits = "does not fit at any batch_size"
    return f"about {need:.1f} GB; {gb} GB: {fits}"


def _gates(profile: Profile, encoders: dict[str, Encoder], weights: dict[str, str]) -> list[str]:
    """The hub's token, and terms, size and place of each encoder and of the teacher."""
    from huggingface_hub import get_token

    missing = "HF_TOKEN is not set, and nobody is logged in to the hub"
    lines = ["a token for the hub is here" if get_token() else missing]
    if profile.source == "hest":
        lines.append("HEST-1k: gated, granted at once, CC BY-NC-SA 4.0")
    for name, encoder in encoders.items():
        where = "your own file" if own_file.is_own(name) else "in the package"
        if name in weights:
            where = f"the file that is given ({weights[name]})"
        elif name in manifest_entries():
            gb, row = bytes_of(encoder) / 1e9, manifest_entries()[name]
            where = f"{row.terms}; about {gb:.2f} GB, {location(row)[1]}"
        lines.append(f"{name}: {where}")
    if size := teacher_bytes(profile):
        terms = TEACHERS[profile.teacher].description
        lines.append(f"{profile.teacher}: {size / 1e9:.2f} GB; {terms}")
    return lines
