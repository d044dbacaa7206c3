"""What a profile needs: slides, spots, networks, RAM, disk and downloads; it downloads nothing."""

import functools
import inspect
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ..common.device import best_device, product_type
from ..common.errors import PekaError
from ..downloads.manifest import source_files
from ..drawn.worlds import OWN
from ..encoders import Encoder, load_encoder
from ..layout.sections import stored_counts
from ..models import backbones, own_file
from ..models.encoder_files import BUNDLED, location, manifest_entries
from ..recipe import mixes_patients
from ..runner.profile import Profile, load_profile
from ..runner.rungs import Rung, as_rung
from ..runner.stages import TABLES_KEPT
from ..sources.hest_files import COUNT_BYTES, TILE_BYTES
from ..studies.excerpt import WHOLE
from ..teachers import TEACHERS
from ..training_parts.tokens import orientations_seen, shape_of_tokens

TOKENS = 2_500  # expressed genes of a spot, for the teacher's cost: an assumption
PROCESS_GB = 1.5  # Python with torch, figures, a small student
GENES = {"demo": 600, "her2st": 12_000}  # genes that a cohort measures
OTHER_GENES = 18_000  # genes of other sources: an assumption
COUNT_BYTES_HELD = 8  # bytes of a stored count, CSR: chapters 1, 2 and 4 hold all counts once
COUNT_PEAK = 28  # bytes for each stored count while a teacher is fitted in chapter 2
DENSE_PEAK = 30  # bytes for each dense value of chapter 2's lesson, where it takes all spots
SMALL_GB = 0.3  # adapters, scores, notebooks and figures of a run
HER2ST_SPOTS = 13_620 / 36  # of a section
# Seconds on one core of an AMD EPYC, measured with the demo and with benchmarks/rehearsal.py
CPU_SHARE = 0.5  # of the speed of a large product: .4 embedding with mini, .7 training it
TILE_SECONDS = 1.1e-3  # of reading and transforming a tile once
TILE_PASSES = 8  # over all tiles beside the networks of `work_of`: digests, hashes, colours, random
COUNT_SECONDS = 1.5e-7  # of each stored count in one pass over all counts
COUNT_PASSES = 25  # beside the teachers: checks, digest, targets of each protocol, ceilings
SPOT_SECONDS = 0.04  # of a spot for everything else: about 50 scores and three UMAPs


class Size(NamedTuple):
    """The size of a profile's cohort, and lines for the plan about its downloads.

    `stored` counts of all spots and `genes` of a section are 0 where they are not known.
    """

    slides: int
    spots: int
    splits: int
    lines: list[str]
    stored: int = 0
    genes: int = 0


def size_of(profile: Profile) -> Size:
    """The size of a profile's cohort, whether or not the cohort is built.

    Raises:
        PekaError: the source's size is known only after its cohort is built.
    """
    if profile.source not in SIZES:
        raise PekaError(
            f"{profile.name}: the number of spots of source {profile.source} is known only after "
            "its cohort is built; peka fetch shows its files"
        )
    return SIZES[profile.source](profile)


def _demo(profile: Profile) -> Size:
    from ..drawn import demo

    defaults = inspect.signature(demo.build).parameters.items()
    options = {name: p.default for name, p in defaults} | profile.source_options
    slides = options["patients"] * options["sections"]
    return Size(slides, slides * options["spots"], options["folds"], ["nothing to download"])


def _directory(profile: Profile) -> Size:
    from ..sources.directory import preflight

    path = profile.source_options["path"]
    cohort = preflight(path)
    line = f"nothing to download: the run links to {path}"
    stored = sum(stored_counts(section) or 0 for section in cohort.sections)
    genes = max(len(section.genes) for section in cohort.sections)
    return Size(len(cohort.samples), len(cohort), len(cohort.split_ids), [line], stored, genes)


def _her2st(profile: Profile) -> Size:
    from ..sources import her2st

    sections = _her2st_sections(profile)
    spots = round(HER2ST_SPOTS * len(sections))
    line = "spots: about 378 a section; the exact number is known once the cohort is built"
    return Size(len(sections), spots, len(her2st.make_splits(sections)), [line])


def _her2st_sections(profile: Profile) -> list[str]:
    from ..sources import her2st

    return her2st._names(profile.source_options.get("sections", her2st.SECTIONS))


def _hest(profile: Profile) -> Size:
    from ..sources import hest

    options = profile.source_options
    cohort = options.get("cohort", "breast")
    rules, own = hest.COHORTS[cohort], [options.get(name, "") for name in ("index", "index_sha256")]
    known = []
    if own[0] or hest.index_place().exists():  # a user's own index is never downloaded
        table = hest.slides(cohort, *own, options.get("counts"))
        table = hest.without(table, options.get("leave_out", ()))
        slides, spots = len(table), int(table["spots"].sum())
        groups = hest.groups(table, options.get("unknown", "slide"))
        splits = hest.make_splits(groups, dict(table["spots"]), options.get("folds", 6))
        n_splits = len(splits)
    else:
        slides, spots, n_splits = rules.slides, rules.spots, options.get("folds", 6)
        known = [
            f"HEST-1k's index is not here (peka fetch {profile.name} brings it), so these are the "
            f"counts of v1_1_0 with all slides and at most {n_splits} splits"
        ]
    gb = spots * (TILE_BYTES + COUNT_BYTES) / 1e9
    lines = [
        f"the paper's n of this cohort: {rules.n_paper:,}",
        *known,
        f"to download and keep: about {gb:.1f} GB of slides ({TILE_BYTES / 1e3:.0f} kB a tile, "
        f"{COUNT_BYTES / 1e3:.0f} kB of counts a spot). This is an estimate: "
        f"peka fetch {profile.name} --dry-run asks the hub. The cohort links to these files",
    ]
    return Size(slides, spots, n_splits, lines)


SIZES: dict[str, Callable[[Profile], Size]] = {
    "demo": _demo,
    "directory": _directory,
    "her2st": _her2st,
    "hest": _hest,
}


class Work(NamedTuple):
    """One piece of work of a profile: its title, its student and its numbers of tiles."""

    what: str
    encoder: str
    method: str
    trained: int  # tiles in all epochs
    embedded: int  # tiles
    last_blocks: int = 0  # of the recipe
    tokens: int = 0  # tiles, in each orientation, that pass the frozen blocks once for the cache


def work_of(profile: Profile, spots: int, splits: int) -> Iterator[Work]:
    """The alignments and embeddings of a profile.

    They do not include the demo's other worlds, the small examples of chapter 3 and the forward
    passes over validation spots.
    """
    for name in profile.encoders:
        yield Work("frozen features", name, "none", 0, spots)
    for what, split, world in profile.alignments([f"patients/{i}" for i in range(splits)]):
        if world == OWN:
            yield work_of_alignment(profile, what, split, spots, splits)


def work_of_alignment(
    profile: Profile, what: Rung | str, split: str, spots: int, splits: int
) -> Work:
    """The work of aligning a method or a rung on one split, and of embedding with it."""
    rung = as_rung(what)
    recipe = rung.change(profile.recipe).for_split(mixes_patients(split))
    share = 1.0 if split == "all" else 0.8 if mixes_patients(split) else 1 - 1 / splits
    validate = spots * share * recipe.validation_share
    train = spots * share - validate
    encoder, trained = rung.encoder or profile.encoder, round(recipe.epochs * train)
    tokens = round(train * orientations_seen(recipe) + validate)
    return Work(
        f"align {rung.method} on {split}", encoder, rung.method, trained, spots,
        recipe.last_blocks, tokens if recipe.last_blocks else 0,
    )  # fmt: skip


def token_bytes(work: Work, encoder: Encoder, bfloat16: bool) -> int:
    """Bytes of the file of tokens while an alignment runs; 0 without `last_blocks`."""
    if not work.last_blocks:
        return 0
    t, d = shape_of_tokens(encoder.model)
    return work.tokens * t * d * (2 if bfloat16 else 4)


@functools.cache
def meta_encoder(name: str) -> Encoder:
    """An encoder without weights on the meta device."""
    half = (0.5, 0.5, 0.5)
    if name in BUNDLED:
        from ..models.mini import build_mini

        with torch.device("meta"):
            model = build_mini(0)
        model = model.requires_grad_(False).eval()
        return Encoder(name, model, half, half, model.num_features, device="meta")
    if own_file.is_own(name):  # only its own code knows its network
        own = load_encoder(name, device="cpu")
        return replace(own, model=own.model.to("meta"), device="meta")
    if name not in manifest_entries():
        raise PekaError(
            f"no plan for encoder {name!r}: data_manifest.yaml does not list it; "
            f"there are {', '.join(manifest_entries())}"
        )
    row = manifest_entries()[name]
    with torch.device("meta"):  # no random weights are drawn: one second, not thirty
        model = backbones.build(row)
    model = model.requires_grad_(False).to("meta")
    crop = row.transform["crop"]
    return Encoder(name, model, half, half, row.dim, crop, None, pool=row.pooling, device="meta")


def bytes_of(encoder: Encoder) -> int:
    """Bytes of a network in float32."""
    return 4 * sum(p.numel() for p in encoder.model.parameters())


@dataclass(frozen=True)
class Needs:
    """Estimated GB of a run: RAM of its process, its files under runs/, and its downloads.

    `counts` says in words with which numbers of counts and genes.
    """

    ram: float
    runs: float
    downloads: float
    counts: str


def needs(profile: Profile, weights: dict[str, str] | None = None) -> Needs:
    """RAM and disk of a profile. Training on the CPU needs further RAM.

    RAM contains the process and the larger of two needs. Chapter 2 needs all stored counts
    (`TOKENS` a spot where the number is not known) while a teacher is fitted, or a dense table of a
    small cohort. Chapter 4 needs all stored counts, the largest network in float32, the tables of
    features that stay, and two more. Tiles are read when they are needed. With `last_blocks`, the
    disk holds the tokens of one alignment at a time.

    Args:
        weights: the user's own files by encoder, which need no download.

    Raises:
        PekaError: as `size_of`.
    """
    _, spots, splits, *_ = size = size_of(profile)
    dim, (stored, genes) = teacher_dim(profile), counts_of(profile, size)
    work = list(work_of(profile, spots, splits))
    encoders = {name: meta_encoder(name) for name in dict.fromkeys(w.encoder for w in work)}
    networks = {name: bytes_of(encoder) for name, encoder in encoders.items()}
    dims = (encoders[w.encoder].dim + (w.method != "none") * dim for w in work)
    tables = [4 * spots * width for width in dims]
    tiles = spots * TILE_BYTES
    held = stored * COUNT_BYTES_HELD
    features = held + (min(TABLES_KEPT, len(tables)) + 2) * max(tables)
    lesson = spots * genes * DENSE_PEAK if spots <= WHOLE else 0
    ram = max(stored * COUNT_PEAK, lesson, max(networks.values()) + features)
    drawn = 0 if profile.source in ("hest", "directory") else tiles + held  # those files are linked
    half = product_type(best_device()) == torch.bfloat16
    tokens = max(token_bytes(w, encoders[w.encoder], half) for w in work)
    runs = drawn + sum(tables) + 4 * spots * dim * (1 + len(work)) + tokens
    downloads = _downloads(profile, spots, networks, weights or {})
    counts = f"an estimate, for {stored / spots:,.0f} counted of {genes:,} genes a spot"
    return Needs(ram / 1e9 + PROCESS_GB, runs / 1e9 + SMALL_GB, downloads / 1e9, counts)


def print_ram(parameters: str) -> None:
    """Print the GB of RAM that a run needs, or `inf` if its size is not known before.

    Args:
        parameters: of `runner.run.open_run`, as JSON.
    """
    given = json.loads(parameters)
    try:
        print(needs(load_profile(given["profile"], given["overrides"]), given["weights"]).ram)
    except PekaError:
        print("inf")


def counts_of(profile: Profile, size: Size) -> tuple[int, int]:
    """Stored counts of all spots and number of genes, assumed where they are not known."""
    genes = size.genes or GENES.get(profile.source, OTHER_GENES)
    return size.stored or size.spots * min(TOKENS, genes), genes


def cpu_hours(profile: Profile, flops: float) -> float:
    """Hours of all chapters on this machine's CPU, right within a factor of about two.

    Args:
        flops: of all networks, on all cores; everything else is counted as on one core.
    """
    size = size_of(profile)
    work, (stored, _) = list(work_of(profile, size.spots, size.splits)), counts_of(profile, size)
    tiles = sum(w.trained + w.embedded for w in work) + TILE_PASSES * size.spots
    seconds = flops / (CPU_SHARE * product_speed()) + tiles * TILE_SECONDS
    seconds += stored * COUNT_SECONDS * (COUNT_PASSES + 2 * size.splits)
    return (seconds + size.spots * SPOT_SECONDS) / 3600


def product_speed(n: int = 1024) -> float:
    """FLOP/s of a float32 product (n, n)(n, n) on all cores that torch uses, while they are quiet.

    One thread is measured by its own CPU time, so other work on the machine hardly matters.
    """
    threads, a = torch.get_num_threads(), torch.ones(n, n)
    torch.set_num_threads(1)
    try:
        a @ a  # the first product also starts the library
        started = time.process_time()
        for _ in range(5):
            a @ a
        return threads * 5 * 2 * n**3 / (time.process_time() - started)
    finally:
        torch.set_num_threads(threads)


def _downloads(profile: Profile, spots: int, networks: dict, weights: dict[str, str]) -> int:
    """Bytes to download if no slide and no teacher is here yet."""
    wanted = [name for name in networks if name in manifest_entries() and name not in weights]
    total = sum(networks[name] for name in wanted if not location(manifest_entries()[name])[0])
    if profile.source == "hest":
        total += spots * (TILE_BYTES + COUNT_BYTES)
    if profile.source == "her2st":
        from ..sources import her2st

        files = her2st.downloads_of(_her2st_sections(profile))
        total += sum(file.facts.get("size", 0) for file in files)
    return total + teacher_bytes(profile)


def teacher_bytes(profile: Profile) -> int:
    """Size of the files of the profile's teacher, from the manifest."""
    if not (wanted := TEACHERS[profile.teacher].files(profile.teacher_options)):
        return 0
    return sum(file.facts.get("size", 0) for file in source_files(profile.teacher, wanted))


def teacher_dim(profile: Profile) -> int:
    """Dimension of the teacher's space."""
    return TEACHERS[profile.teacher].dim(profile.teacher_options)
