"""Write benchmarks/README.md: one row for each claim, from the tables beside it.

python scripts/benchmark_page.py           # complain if the page differs; exit code 1 then
python scripts/benchmark_page.py --write
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

FOLDER = Path(__file__).parents[1] / "benchmarks"
HEAD = """# Benchmarks

This page is made from the tables beside it: `python scripts/benchmark_page.py --write`. Each script
compares alternatives in the same run, so read the ratio first. *Floor* is what no code could beat
there: usually the share of one large matrix product's speed that ours reaches.

"CPU" is an AMD EPYC with 2 cores, shared with other work. GPU rows have drawn weights. A row
without a commit is from a call whose commit was not kept.
"""
STUDIES = """## Studies, not timings

- `components.py`: how much of a result's spread comes from cohort, patient and seed. It writes
  `results/components.csv`, which chapter 4 shows; 2 to 7 minutes a cohort.
- `ladder.py`: what each rung of the ladder adds to the frozen encoder on ten freshly drawn cohorts.
  It writes `results/ladder_cohorts.csv`, which chapter 5 shows; about 3 minutes a cohort.
- `comparisons.py NAME`: losses, how many blocks adapt, teachers, and the recipe `beyond`, on ten
  further cohorts, two at a time: 6 to 33 minutes each. Chapter 5 shows the tables.
- `cohorts.py` draws the cohorts of all three.
"""


class Claim(NamedTuple):
    """One row of the page; every field is text."""

    what: str
    ours: str
    alternative: str
    ratio: str
    floor: str
    where: str
    commit: str
    command: str


SHORT = 2.0  # s; a shorter stage says nothing about growth
HEADER = ("", "ours", "alternative, same run", "ratio", "floor", "hardware", "commit", "command")


def number(value: float) -> str:
    """Three digits, or whole with commas from a thousand on."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def times(slow: float, fast: float) -> str:
    """How many times as fast, in words."""
    return f"{slow / fast:.3g} times as fast"


def place(row: pd.Series) -> str:
    """The hardware of a row, in short."""
    name = str(row.get("cpu", row.get("device")))
    return "CPU" if "EPYC" in name else name.removeprefix("NVIDIA ").split(" 80GB")[0]


def head(table: pd.DataFrame) -> Iterator[Claim]:
    """All genes at once, beside one gene and the authors' loop."""
    for _, row in table.iterrows():
        end = place(row), row["commit"], "head.py --large"
        n, d = f"{row['n']:,} spots x {row['d']:,} features", row["genes_50_s"]
        if pd.isna(d):
            ours = f"{row['alphas_13_one_split_s']:.3g} s, {row['peak_gb']:.2g} GB"
            floor = f"{row['n'] * row['d'] * 4 / 1e9:.2g} GB are the features in float32"
            end = (*end[:2], "head.py --memory")
            yield Claim(f"13 penalties, one split, {n}", ours, "", "", floor, *end)
            continue
        what, ours = f"50 genes, 5 splits, {n}", f"{d:.3g} s"
        one = f"one gene: {row['one_gene_s']:.3g} s"
        ratio = f"{row['ratio_50_to_1']:.3g} times its time"
        yield Claim(what, ours, one, ratio, "1, the one gene", *end)
        loop = f"the authors' loop over genes: {row['loop_s_scaled_from_3']:.3g} s, scaled from 3"
        ours = f"{ours}, equal within {row['largest_difference']:.0e}"
        yield Claim(what, ours, loop, times(row["loop_s_scaled_from_3"], d), "", *end)


def teacher(table: pd.DataFrame) -> Iterator[Claim]:
    """Packed batches beside one cell at a time."""
    for _, row in table.iterrows():
        size = "real size" if row["network"] == "real" else "small"
        what = f"scFoundation, {size}, {row['median_genes']:,} genes a cell"
        floor = f"{row['share_batched']:.2g} of a large product"
        end = place(row), row["commit"], "teacher.py --large"
        ours, plain = row["batched_s"], row["plain_s"]
        other = f"one cell at a time, written plainly: {plain:.3g} s"
        yield Claim(what, f"{ours:.3g} s", other, times(plain, ours), floor, *end)
        half = row["bfloat16_s"]
        ours = f"{half:.3g} s, lowest cosine {row['cosine_bfloat16']:.5f}"
        yield Claim(f"{what}, bfloat16", ours, other, times(plain, half), "", *end)


def alignment(table: pd.DataFrame) -> Iterator[Claim]:
    """A training step beside peft's layers and beside itself uncompiled; embedding; the floor."""
    keys = ["encoder", "batch", "commit", "device"]
    for _, row in table[table["tiles_per_s"].notna()].iterrows():
        if row["method"].startswith("peft"):
            continue
        run = table[(table[keys] == row[keys]).all(axis=1)]
        same = run[run["compile"] == row["compile"]].set_index("method")["tiles_per_s"]
        others = {}
        if f"peft {row['method']}" in same:
            others["peft"] = same[f"peft {row['method']}"]
        if "floor" in same and row["method"] not in ("none", "floor", "projector_only"):
            others["frozen floor"] = same["floor"]
        before = run[(run["method"] == row["method"]) & (run["compile"] == "never")]["tiles_per_s"]
        if row["compile"] == "always" and len(before):
            others["uncompiled"] = before.iloc[-1]
        speed, name = row["tiles_per_s"], row["method"].replace("_", " ")
        done = "embedding, frozen" if name == "none" else f"a step of {name}"
        done = "a step of a frozen network" if name == "floor" else done
        compiled = ", compiled" if row["compile"] == "always" else ""
        what = f"{row['encoder']}, {done}, batch {row['batch']}{compiled}"
        memory = row["peak_gpu_gb"] if pd.notna(row["peak_gpu_gb"]) else None
        gb = f", {memory:.3g} GB" if memory else ""
        plan = f" (planned {row['planned_gb']:.3g})" if gb and pd.notna(row["planned_gb"]) else ""
        yield Claim(
            what, f"{number(speed)} tiles/s{gb}{plan}",
            "; ".join(f"{n}: {number(v)} tiles/s" for n, v in others.items()),
            "; ".join(times(speed, v) for v in others.values()),
            f"{row['share']:.2g} of a large product", place(row), row["commit"],
            f"alignment.py --encoders {row['encoder']} --block {row['block']}",
        )  # fmt: skip


def last_blocks(table: pd.DataFrame) -> Iterator[Claim]:
    """50 epochs of the last blocks on cached tokens, beside all blocks."""
    for _, row in table.iterrows():
        flips = "with flips" if row["flips"] else "without flips"
        what = f"{row['encoder']}, the last {row['last_blocks']}, 50 epochs {flips}"
        n, disk = row["tiles"], f"{row['mb_a_tile']:.2g} MB a tile on the disk"
        ours = f"{row['cached_s'] / n * 1e3:,.0f} ms a tile, {disk}"
        other = f"all blocks: {row['all_s'] / n * 1e3:,.0f} ms a tile"
        floor = f"{row['flops']:.3g} times in FLOPs"
        end = floor, place(row), row["commit"], "last_blocks.py"
        yield Claim(what, ours, other, times(row["all_s"], row["cached_s"]), *end)


def waiting(table: pd.DataFrame) -> Iterator[Claim]:
    """OpenMP threads that sleep while they wait, beside threads that spin."""
    for _, row in table.iterrows():
        beside = "beside one busy process" if row["busy processes"] else "alone"
        sleep, spin = row["passive, tiles/s"], row["active, tiles/s"]
        other, end = f"spinning: {spin} tiles/s", (place(row), row["commit"], "waiting.py")
        what = f"training with sleeping threads, {beside}"
        yield Claim(what, f"{sleep} tiles/s", other, times(sleep, spin), "", *end)


def demo(table: pd.DataFrame) -> Iterator[Claim]:
    """The whole demo with two chapters at a time, beside one where that was measured."""
    rows = table.set_index("chapters")
    in_words = lambda row: f"{row['minutes']:.1f} min, {row['peak_gb']:.1f} GB"
    two, other, ratio = rows.loc["two"], "", ""
    if "one" in rows.index:
        one = rows.loc["one"]
        other, ratio = f"one at a time: {in_words(one)}", times(one["minutes"], two["minutes"])
    floor = f"{two['cpu_minutes'] / 2:.1f} min: half of its CPU time"
    end = floor, place(two), two["commit"], "demo.py"
    yield Claim("`peka run demo`, two chapters at a time", in_words(two), other, ratio, *end)


def tiles(table: pd.DataFrame) -> Iterator[Claim]:
    """A batch of tiles from files that stay open, beside HDF5's selections."""
    for _, row in table.iterrows():
        what = f"{row['batch']} random tiles of {row['sections']} sections"
        other = f"h5py's selections: {row['selections_ms']:.3g} ms"
        floor = f"{row['memory_ms']:.2g} ms: from memory"
        ratio = times(row["selections_ms"], row["open_files_ms"])
        end = floor, place(row), row["commit"], "tiles.py"
        yield Claim(what, f"{row['open_files_ms']:.3g} ms", other, ratio, *end)


def slide(table: pd.DataFrame) -> Iterator[Claim]:
    """`peka predict` on a slide, beside LazySlide with the same model."""
    for _, row in table.iterrows():
        ours = f"{row['seconds']:.0f} s, {row['peak_gb']:.1f} GB"
        other = f"LazySlide: {row['lazyslide_s']:.0f} s, {row['lazyslide_gb']:.1f} GB, no files"
        ratio = times(row["lazyslide_s"], row["seconds"])
        if pd.isna(row["lazyslide_s"]):
            other, ratio = "LazySlide: its default mask finds no tissue", ""
        what = f"{row['what']}, {row['tiles']:,} tiles, 50 genes"
        end = ("", place(row), row["commit"], "slide.py")
        yield Claim(what, ours, other, ratio, *end)
        same = "the same files" if row["same_files"] else "other files"
        what = f"{row['what']}, killed half-way and continued"
        yield Claim(what, f"{row['resumed_s']:.0f} s, {same}", f"at once: {row['seconds']:.0f} s",
                    times(row["seconds"], row["resumed_s"]), *end)  # fmt: skip


def rehearsal(table: pd.DataFrame) -> Iterator[Claim]:
    """The chapters at full size beside their plan."""
    chapters = table[table["what"].str.match(r"\d\d_")].dropna(subset=["planned_gb"])
    for spots, rows in chapters.groupby("spots"):
        rows = rows.groupby("what").last().reset_index()  # a repeated chapter counts once
        last, end = rows.iloc[-1], (place(rows.iloc[-1]), rows.iloc[-1]["commit"], "rehearsal.py")
        for _, row in rows.iterrows():
            what = f"{row['what']}, {spots:,} spots"
            cpu = f"{row['seconds']:,.0f} s ({row['cpu_seconds']:,.0f} s of CPU time)"
            yield Claim(what, f"{cpu}, {row['peak_gb']:.1f} GB", "", "", "", *end)
        hours, peak = rows["seconds"].sum() / 3600, rows["peak_gb"].max()
        planned = f"planned before: {last['planned_hours']:.1f} h, {last['planned_gb']:.1f} GB"
        ratio = (
            f"{hours / last['planned_hours']:.2f} and {peak / last['planned_gb']:.2f} of the plan"
        )
        what = f"chapters {rows['what'].min()[:2]} to {rows['what'].max()[:2]}, {spots:,} spots"
        yield Claim(what, f"{hours:.1f} h, {peak:.1f} GB", planned, ratio, "", *end)
    if "stage_cpu" in table:
        yield from growth(table.dropna(subset=["stage_cpu"]))


def growth(stages: pd.DataFrame) -> Iterator[Claim]:
    """CPU time of a spot in every stage, from the smallest drawn cohort to the largest."""
    for what, rows in stages.groupby("what", sort=False):
        rows = rows.groupby("spots").last()
        if len(rows) < 2 or rows["stage_cpu"].max() < SHORT:
            continue
        per_spot = 1000 * rows["stage_cpu"] / rows.index  # ms
        last = rows.iloc[-1]
        peaks = " and ".join(f"{peak:.1f}" for peak in rows["peak_gb"].iloc[[0, -1]])
        sizes = f"{rows.index[0]:,} to {rows.index[-1]:,} spots"
        ours = f"{' to '.join(f'{ms:.2f}' for ms in per_spot)} ms of CPU time a spot, {peaks} GB"
        ratio = f"{per_spot.iloc[-1] / per_spot.iloc[0]:.2f} times the time of a spot"
        end = (place(last), last["commit"], "rehearsal.py --stages all")
        yield Claim(f"stage {what}, {sizes}", ours, "growth in proportion", ratio, "1", *end)


SECTIONS: dict[str, tuple[str, Callable[[pd.DataFrame], Iterator[Claim]]]] = {
    "The demo": ("demo", demo),
    "Tiles": ("tiles", tiles),
    "The head: PCA and ridge": ("head", head),
    "The scFoundation teacher": ("teacher", teacher),
    "An alignment, and embedding": ("alignment", alignment),
    "The last blocks on cached tokens": ("last_blocks", last_blocks),
    "A slide without counts": ("slide", slide),
    "The paper's kidney at full size, drawn": ("rehearsal", rehearsal),
    "Threads that wait": ("waiting", waiting),
}
NOTES = {
    "demo": "After installation, which compiles the functions of UMAP. Memory is that of all "
    "processes together, shared pages counted once.",
    "alignment": "3,072 outputs, qkv adapted, b or r = 256. *peft* is the same adapter by peft in "
    "the same loop. The *frozen floor* is a network without an adapter through which the gradient "
    "flows. Bat's exact gradient needs one product more than the floor's two in each adapted "
    "layer, and peft needs the same three.",
    "last_blocks": "Four of 40 blocks, bat, computed from a few measured epochs: the frozen blocks "
    "once for each tile (with flips in the 7.99 of 8 orientations that are drawn), then 50 epochs "
    "that read tokens. On the CPU it is the CPU time of one thread. In FLOPs, products alone "
    "count; the first pass is faster than that, because it has no backward pass. The file is small "
    "here. H-optimus-0 needs 0.80 MB a tile, so a file that does not fit into memory needs a disk "
    "that reads 0.8 GB for each 1,000 tiles.",
    "waiting": "`peka_core` sets `OMP_WAIT_POLICY=PASSIVE` if you did not set it, because on a "
    "machine that also does other work a spinning thread waits for a thread that is not running. "
    "`OMP_WAIT_POLICY=ACTIVE make demo` turns it off.",
}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, (name, claims) in SECTIONS.items():
        table = pd.read_csv(FOLDER / f"{name}.csv", keep_default_na=True)
        table["commit"] = table["commit"].fillna("").astype(str)
        rows = [HEADER, ("---",) * len(HEADER), *claims(table)]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        note = [NOTES[name], ""] if name in NOTES else []
        parts.append("\n".join([f"## {title}: `{name}.py`", "", *note, *lines, ""]))
    return "\n".join([*parts, STUDIES])


def main() -> int:
    """Compare or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    path, made = FOLDER / "README.md", page()
    if parser.parse_args().write:
        path.write_text(made, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != made:
        print("benchmarks/README.md is not that of its tables: run it with --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
