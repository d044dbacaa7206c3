"""Rank schedules: how the number of AdaLoRA's ranks falls while a student is trained.

peft chooses the ranks that are removed. The loop in `alignment.py` reports each step to it.
"""

import functools
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # peft's running importance of each rank


class FixedRanks:
    """The rank schedule of all methods except AdaLoRA: the ranks never change."""

    def start(self, steps: int) -> None: ...

    def penalty(self) -> Tensor | float:
        return 0.0

    def after_step(self, step: int) -> None: ...

    def ranks_are_final(self, steps_done: int) -> bool:
        return True

    def ranks(self) -> dict[str, int]:
        return {}

    def state(self) -> dict:
        return {}

    def load_state(self, state: dict) -> None: ...


class AdaLoraRanks(FixedRanks):
    """AdaLoRA's rank schedule: peft removes ranks while the loop reports each step.

    peft reads the smallest kept importance, and which ranks are kept, from the device in each step.
    Here both stay there (`_remove_ranks`), because a GPU would wait.

    Args:
        model: peft's AdaLoraModel.
    """

    def __init__(self, model: Any):
        self.model, self.config = model, model.peft_config["default"]
        allocator = model.rankallocator
        allocator.mask_to_budget = functools.partial(_remove_ranks, allocator)
        allocator.mask_using_rank_pattern = _keep_removed

    def start(self, steps: int) -> None:
        """Plan the number of ranks: all in the first tenth of `steps`, the target in the last 3/10.

        Ranks are compared at every step. Otherwise Adam's momentum would bring removed ranks back
        before the next comparison. A single step is too short for this plan.
        """
        self.config.total_step, self.config.deltaT = steps, 1
        self.config.tinit, self.config.tfinal = steps // 10, min(max(1, 3 * steps // 10), steps - 1)

    def penalty(self) -> Tensor:
        """AdaLoRA's regulariser: the mean distance of the factors from orthogonal, weighted."""
        named = list(self.model.named_parameters())
        factors = [p if "lora_A" in n else p.T for n, p in named if "lora_A" in n or "lora_B" in n]
        far = [torch.norm(p @ p.T - torch.eye(len(p), device=p.device)) for p in factors]
        return self.config.orth_reg_weight * torch.stack(far).mean()

    def after_step(self, step: int) -> None:
        """Remove the least important ranks. Importance is computed from the step's gradients."""
        self.model.update_and_allocate(step)

    def ranks_are_final(self, steps_done: int) -> bool:
        """Whether the ranks are down to their target. An epoch with more ranks is never kept."""
        return steps_done > self.config.total_step - self.config.tfinal

    def ranks(self) -> dict[str, int]:
        """Ranks in use as `rank_<layer>`."""
        scales = {n: p for n, p in self.model.named_parameters() if "lora_E" in n}
        layers = {n: n.removeprefix("model.").partition(".lora_E")[0] for n in scales}
        return {f"rank_{layers[n]}": int((p != 0).sum()) for n, p in scales.items()}

    def state(self) -> dict:
        """What a resumed alignment needs in addition to the weights."""
        moments = {name: getattr(self.model.rankallocator, name) for name in MOMENTS}
        return moments | {"rank_pattern": dict(self.config.rank_pattern or {})}

    def load_state(self, state: dict) -> None:
        """Go on from what `state` returned."""
        device = next(self.model.parameters()).device
        for name in MOMENTS:
            moments = {layer: value.to(device) for layer, value in state[name].items()}
            setattr(self.model.rankallocator, name, moments)
        kept = state["rank_pattern"]
        self.config.rank_pattern = {layer: mask.to(device) for layer, mask in kept.items()}


@torch.no_grad()
def _remove_ranks(allocator: Any, model: Any, budget: int) -> dict[str, Tensor]:
    """Set the scales of all but the `budget` most important ranks of all layers to zero.

    The same as peft's `RankAllocator.mask_to_budget`: the importance of a rank is that of its
    scale, plus the means over its row of A and its column of B.

    Returns:
        The kept ranks of each layer as a mask (r, 1), by the name of its scales.
    """
    scales = {n: p for n, p in model.named_parameters() if "lora_E" in n}  # (r, 1)
    score = allocator._element_score
    importance = {}
    for n in scales:
        a = score(n.replace("lora_E", "lora_A")).mean(1, keepdim=True)  # (r, in) -> (r, 1)
        b = score(n.replace("lora_E", "lora_B")).mean(0)[:, None]  # (out, r) -> (r, 1)
        importance[n] = score(n) + (a + b)
    everything = torch.cat(list(importance.values()))[:, 0]
    largest_removed = torch.kthvalue(everything, allocator.init_bgt - budget).values
    kept = {n: value > largest_removed for n, value in importance.items()}
    _keep_removed(model, kept)
    return kept


@torch.no_grad()
def _keep_removed(model: Any, kept: dict[str, Tensor]) -> None:
    """Set the scales of removed ranks to zero, since Adam's momentum moves them."""
    for name, scale in model.named_parameters():
        if name in kept:
            scale.masked_fill_(~kept[name], 0.0)
