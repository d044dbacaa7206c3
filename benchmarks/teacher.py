"""Speed of the scFoundation teacher: packed batches against one cell at a time, at equal output.

    python benchmarks/teacher.py            a small network: the cost of front end and single calls
    python benchmarks/teacher.py --large    the real size too (d 768, 12 layers, 12 heads); minutes

Weights and cells are drawn, so nothing is downloaded. On a CPU one thread is used and its CPU time
is taken, so that other work on the machine counts little; on a GPU it is wall time. A row per
network and length of cell is appended to benchmarks/teacher.csv:

    plain_s         one cell at a time, as one would first write it: a dense row over the vocabulary
                    and torch's own encoder layers
    single_s        peka_core with one cell a batch (`tokens=1`)
    batched_s       peka_core
    bfloat16_s      peka_core with precision bfloat16; the output differs, so the lowest cosine with
                    float32 stands beside it
    share_...       multiplications a second, as a share of what a large matrix product reaches.
                    Where `share_plain` is .8, equal output cannot be made over 1.25 times as fast
"""

import argparse
import tempfile
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from head import hardware
from scipy import sparse
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from peka_core.commands.plan import ATTENTION
from peka_core.common.files import write_whole
from peka_core.models.scfoundation import ScFoundation
from peka_core.models.scfoundation_network import ScFoundationNetwork

TABLE = Path(__file__).with_suffix(".csv")
GENES = 19_264
NETWORKS = {"small": (64, 2, 4), "real": (768, 12, 12)}  # d, layers, heads


def drawn_cells(n: int, median: int) -> anndata.AnnData:
    """Counts `(n, 19264)` of cells that express about `median` genes each."""
    rng = np.random.default_rng(0)
    lengths = (median * rng.lognormal(0, 0.35, n)).astype(int).clip(20, 8_000)
    rows = [np.sort(rng.choice(GENES, length, replace=False)) for length in lengths]
    counts = rng.geometric(0.6, lengths.sum()).astype(np.float32)
    x = sparse.csr_matrix(
        (counts, np.concatenate(rows), np.append(0, lengths.cumsum())), (n, GENES)
    )
    return anndata.AnnData(x, var=pd.DataFrame(index=[f"G{i}" for i in range(GENES)]))


def drawn_teacher(folder: Path, network: ScFoundationNetwork, **options) -> ScFoundation:
    """The teacher with a drawn network and a vocabulary of made-up names."""
    path = folder / "vocabulary.tsv"
    pd.DataFrame({"gene_name": [f"G{i}" for i in range(GENES)], "index": range(GENES)}).to_csv(
        path, sep="\t", index=False
    )
    teacher = ScFoundation(vocabulary=path, **options)
    teacher.network = network.to(teacher.device)
    return teacher


def drawn_network(size: str) -> ScFoundationNetwork:
    """Drawn weights of one of the sizes."""
    torch.manual_seed(0)
    dim, depth, heads = NETWORKS[size]
    network = ScFoundationNetwork(dim, depth, heads, bins=100, alpha=1.0, positions=GENES + 3)
    for layer in network.encoder.transformer_encoder:
        nn.init.xavier_uniform_(layer.self_attn.in_proj_weight)
        nn.init.zeros_(layer.self_attn.in_proj_bias)
    return network.requires_grad_(False).eval()


def plain_layers(network: ScFoundationNetwork, size: str, device: str) -> list[nn.Module]:
    """torch's own layers with the same weights: an independent answer too."""
    dim, _, heads = NETWORKS[size]
    layers = []
    for ours in network.encoder.transformer_encoder:
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, batch_first=True)
        layer.load_state_dict(ours.state_dict())
        layers.append(layer.eval().to(device))
    return layers


@torch.no_grad()
def plain(
    network: ScFoundationNetwork, layers: list[nn.Module], adata: anndata.AnnData, device: str
) -> np.ndarray:
    """One cell at a time from dense rows: F, f1, all."""
    vectors = []
    for row in adata.X:
        counts = pd.Series(row.toarray()[0], index=adata.var_names)
        total = counts.sum()
        values = torch.tensor(
            [*np.log1p(counts / total * 1e4).tolist(), np.log10(total), np.log10(total)],
            device=device,
        )
        ids = (values > 0).nonzero()[:, 0]
        x = (network.token_emb(values[ids].float()) + network.pos_emb(ids))[None]  # (1, n, d)
        for layer in layers:
            x = layer(
                x, src_key_padding_mask=torch.zeros(x.shape[:2], dtype=torch.bool, device=device)
            )
        x = network.encoder.norm(x)[0]  # (n, d)
        vectors.append(torch.cat([x[-1], x[-2], x[:-2].amax(0), x[:-2].mean(0)]).cpu().numpy())
    return np.stack(vectors)


def seconds(calls: list, repeats: int, clock) -> tuple[list[float], list[np.ndarray]]:
    """Least seconds of each call, taken in turns, and what each returned last."""
    times, made = [], [None] * len(calls)
    for _ in range(repeats):
        times.append([])
        for i, call in enumerate(calls):
            start = clock()
            made[i] = call()
            times[-1].append(clock() - start)
    return np.min(times, axis=0).tolist(), made


def product_flops(
    device: str,
    clock=time.perf_counter,
    shape=(8_192, 768, 3_072),
    dtype: torch.dtype = torch.float32,
) -> float:
    """FLOPs a second of one large product (n, m)(m, k) of `shape` n, m, k, the best of five."""
    n, m, k = shape
    a, b = (
        torch.randn(n, m, device=device, dtype=dtype),
        torch.randn(m, k, device=device, dtype=dtype),
    )
    times = []
    for _ in range(6):
        start = clock()
        (a @ b)[0, 0].item()  # waits for a GPU
        times.append(clock() - start)
    return 2 * n * m * k / min(times[1:])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Lowest cosine of the rows of a and b, (n, d) each."""
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def measure(size: str, n: int, median: int, repeats: int, folder: Path) -> dict:
    """One row of the table."""
    network, adata = drawn_network(size), drawn_cells(n, median)
    ours, single, half = (
        drawn_teacher(folder, network, **o) for o in ({}, {"tokens": 1}, {"precision": "bfloat16"})
    )
    layers = plain_layers(network, size, ours.device)
    calls = [
        lambda: plain(network, layers, adata, ours.device),
        *(lambda t=t: t.embed(adata) for t in (single, ours, half)),
    ]
    with FlopCounterMode(
        display=False, custom_mapping=ATTENTION
    ) as counter:  # a first pass: libraries load, memory is asked for
        ours.embed(adata)
    half.embed(adata)
    clock = (
        time.perf_counter if torch.cuda.is_available() else time.process_time
    )  # the latter does not count other programs
    (plain_s, single_s, batched_s, bfloat16_s), (expected, alone, made, rounded) = seconds(
        calls, repeats, clock
    )
    share = counter.get_total_flops() / product_flops(
        ours.device, clock
    )  # seconds that the arithmetic alone would take
    genes = int(np.median(np.diff(adata.X.indptr)))
    made_by = {"network": size, "cells": n, "median_genes": genes, "device": ours.device}
    times = {
        "plain_s": plain_s,
        "single_s": single_s,
        "batched_s": batched_s,
        "bfloat16_s": bfloat16_s,
    }
    faster = {
        "times_plain": plain_s / batched_s,
        "times_single": single_s / batched_s,
        "times_bfloat16": plain_s / bfloat16_s,
    }
    equal = {
        "difference_plain": np.abs(made - expected).max(),
        "difference_single": np.abs(made - alone).max(),
        "cosine_bfloat16": cosine(made, rounded),
    }
    shares = {"share_plain": share / plain_s, "share_batched": share / batched_s}
    return made_by | times | faster | equal | shares


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true", help="the real size as well")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    more = 8 if torch.cuda.is_available() else 1  # cells: enough to time
    plan = [("small", 200, 100), ("small", 64, 300), ("small", 32, 1_700)]
    plan += [("real", 32, 100), ("real", 16, 300), ("real", 8, 1_700)] if options.large else []
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size, n, median in plan:
            made = measure(size, more * n, median, options.repeats, Path(folder))
            rows.append(
                made | hardware() | {"threads": torch.get_num_threads(), "torch": torch.__version__}
            )
            if torch.cuda.is_available():
                rows[-1]["cpu"] = torch.cuda.get_device_name()
            texts = (
                f"{value:.3g}" if isinstance(value, float) else f"{value}"
                for value in rows[-1].values()
            )
            print(*(f"{name} {text}" for name, text in zip(rows[-1], texts)), flush=True)
    rows = pd.DataFrame(rows)
    if TABLE.exists():
        rows = pd.concat([pd.read_csv(TABLE), rows])
    write_whole(TABLE, lambda path: rows.to_csv(path, index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()
