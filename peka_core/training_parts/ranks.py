"""Rank schedules: how the number of AdaLoRA's ranks falls while a student is trained.

peft chooses the ranks that are removed. The loop in `alignment.py` reports each step to it.
"""

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

    Args:
        model: peft's AdaLoraModel.
    """

    def __init__(self, model: Any):
        self.model, self.config = model, model.peft_config["default"]

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
        self.config.rank_pattern = state["rank_pattern"]
