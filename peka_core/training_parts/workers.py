"""Several workers that work as one: the processes that `torchrun` starts, one for each GPU.

    torchrun --nproc-per-node 2 my_script.py      # which calls align or embed_tiles, as always

A worker has a number, its rank, from 0. Without torchrun there is one worker of rank 0. Then no
process group is made, and each function below returns what it is given. With torchrun, all workers
must call these functions in the same order, because each call waits for the other workers. If one
worker fails, its process ends, and torchrun ends the others.
"""

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # torch takes seconds to import, and a unit that is finished does not need it
    from torch import Tensor, nn

# Workers may wait for hours while the first one works alone. A worker that has died is noticed by
# torchrun, so no shorter limit is needed.
LONGEST_WAIT = timedelta(days=10)

_works_alone = False  # whether this process is inside `alone`


def rank() -> int:
    """The number of this worker, 0 for the first one."""
    return 0 if _works_alone else _place()[0]


def count() -> int:
    """The number of workers."""
    return 1 if _works_alone else _place()[1]


@functools.cache
def _place() -> tuple[int, int]:
    """Rank and number of workers; the first call joins the process group of torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return 0, 1
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        gpu = int(os.environ["LOCAL_RANK"])
        has_gpu = gpu < torch.cuda.device_count()
        if has_gpu:
            torch.cuda.set_device(gpu)
        backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
        distributed.init_process_group(backend, timeout=LONGEST_WAIT)
    return distributed.get_rank(), distributed.get_world_size()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Work as if there were no other workers. They must wait meanwhile, for example in `told`."""
    global _works_alone
    before, _works_alone = _works_alone, True
    try:
        yield
    finally:
        _works_alone = before


def part(n: int, of: int | None = None) -> slice:
    """The rows of n that one worker takes; the workers' parts are contiguous and in order.

    Args:
        of: the rank of that worker; None for this one.
    """
    of = rank() if of is None else of
    return slice(n * of // count(), n * (of + 1) // count())


def part_of_batch(batch: slice) -> tuple[slice, float]:
    """This worker's part of a batch, and the weight w of the loss of that part.

    The loss of a part is a mean over its rows, and DistributedDataParallel averages the gradients
    of all workers. With w = workers * rows of the part / rows of the batch, the result is the
    gradient of the mean over the whole batch. If the batch has fewer rows than there are workers,
    some workers have none. They take one row with weight 0, because each worker must take part.
    """
    n = batch.stop - batch.start
    mine = part(n)
    start, rows = batch.start + mine.start, mine.stop - mine.start
    return slice(start, start + max(rows, 1)), count() * rows / n


def sharing_gradients(module: "nn.Module") -> "nn.Module":
    """The module, whose trained weights get from `backward` the mean gradient of all workers.

    The weights of the first worker are copied to the others now. The forward pass must use every
    trained weight, or not use the same ones in each step.
    """
    if count() == 1 or not any(p.requires_grad for p in module.parameters()):
        return module
    import torch._dynamo
    from torch.nn.parallel import DistributedDataParallel

    # Blocks are compiled one by one. Dynamo would cut each of them at DDP's buckets.
    torch._dynamo.config.optimize_ddp = False
    with warnings.catch_warnings(category=FutureWarning, action="ignore"):  # 2.14 has a new name
        return DistributedDataParallel(module, broadcast_buffers=False, static_graph=True)


def own_random_numbers(seed: int, epoch: int) -> None:
    """Give each worker but the first one its own random numbers for the dropout of this epoch.

    They depend on nothing else, so an alignment that was killed goes on with the same ones.
    """
    if rank():
        import torch

        sequence = np.random.SeedSequence((seed, epoch, rank()))
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def summed(values: "Tensor") -> "Tensor":
    """The sum over all workers of a tensor of one shape, in place."""
    if count() > 1:
        from torch import distributed

        distributed.all_reduce(values)
    return values


def gathered(mine: np.ndarray, n: int) -> np.ndarray:
    """The whole array (n, ...) on each worker, from each worker's `part(n)` of it."""
    if count() == 1:
        return mine
    import torch
    from torch import distributed

    whole = torch.empty((n, *mine.shape[1:]), dtype=torch.from_numpy(mine).dtype)
    whole[part(n)] = torch.from_numpy(mine)
    for sender in range(count()):
        distributed.broadcast(whole[part(n, sender)], sender)
    return whole.numpy()


def told(value: Any = None) -> Any:
    """The first worker's value, on each worker; the others wait for it, and theirs is ignored."""
    if count() == 1:
        return value
    import torch
    from torch import distributed

    box = [value]
    distributed.broadcast_object_list(box, 0, device=torch.device("cpu"))
    return box[0]
