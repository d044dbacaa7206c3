"""What may change in the encoder: bone and bat (bone.py), LoRA and AdaLoRA (peft), everything (full), nothing.

`add` puts a method into a network in place. All of them hit Linear layers by name, so the convolution of a patch
embedding is never among them, and all but `full` leave every tensor of the network as it was.
"""

import torch
from torch import Tensor, nn

from . import bone
from .errors import PekaError
from .recipe import Recipe

ADALORA_START = 1.5  # AdaLoRA begins with this many times the rank that it ends with


def add(network: nn.Module, method: str, recipe: Recipe, seed: int = 0) -> "RankAllocation | None":
    """Put the adapter of `method` into `network`; what it trains has requires_grad, everything else has not.

    Args:
        recipe: targets; block (bone, bat); rank, alpha and adapter_dropout (lora, adalora), reallocate (adalora).
        seed: draws LoRA's first factor (the second is zero, so the network starts as it was).

    Returns:
        for adalora that reallocates the object that moves ranks between layers while training, otherwise None.

    Raises:
        PekaError: targets that name no Linear layer, or a block size that does not divide one.
    """
    if method in bone.WEIGHTS:
        try:
            bone.inject(network, recipe.targets, method, recipe.block)
        except ValueError as error:
            raise PekaError(
                f"{error}: change the profile's block (-p block=... --run NAME) or its targets"
            ) from error
    elif method in ("lora", "adalora"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _add_peft(network, method, recipe)
    elif method == "full":
        network.requires_grad_(True)
    return None


def _add_peft(network: nn.Module, method: str, recipe: Recipe) -> "RankAllocation | None":
    from peft import (  # seconds to import
        AdaLoraConfig,
        LoraConfig,
        inject_adapter_in_model,
    )
    from peft.tuners.adalora import AdaLoraModel

    names = bone.linear_targets(network, recipe.targets)
    if method == "lora":
        options = {
            "lora_alpha": recipe.alpha,
            "lora_dropout": recipe.adapter_dropout,
            "target_modules": names,
        }
        inject_adapter_in_model(LoraConfig(r=recipe.rank, **options), network)
        return None
    start = round(ADALORA_START * recipe.rank) if recipe.reallocate else recipe.rank
    config = AdaLoraConfig(
        init_r=start, target_r=recipe.rank, lora_alpha=recipe.alpha * start / recipe.rank, lora_dropout=recipe.adapter_dropout,
        target_modules=names, total_step=100,
    )  # fmt: skip
    allocation = RankAllocation(AdaLoraModel(network, config, "default"))
    return allocation if recipe.reallocate else None


class RankAllocation:
    """AdaLoRA's moving ranks: peft's AdaLoraModel, told of every step of our loop."""

    def __init__(self, model):
        self.model = model
        self.config = model.peft_config["default"]

    def start(self, steps: int) -> None:
        """Plan the budget over `steps` optimiser steps: full until a tenth, at its target for the last three tenths.

        A single step leaves no room for it. Ranks are weighed at every step: between two weighings Adam's momentum
        would bring those back that were taken out.
        """
        self.config.total_step, self.config.deltaT = steps, 1
        self.config.tinit, self.config.tfinal = steps // 10, min(max(1, 3 * steps // 10), steps - 1)

    def within_budget(self, steps_done: int) -> bool:
        """Whether the ranks are down to their target, so that this student has the size that it is said to have."""
        return steps_done > self.config.total_step - self.config.tfinal

    def after_step(self, step: int) -> None:
        """Weigh every rank by its gradients and take the least important ones out (before gradients are cleared)."""
        self.model.update_and_allocate(step)

    def penalty(self) -> Tensor:
        """AdaLoRA's regulariser: how far the outer factors are from orthogonal, averaged over them, times its weight."""
        factors = [
            p if "lora_A" in n else p.T
            for n, p in self.model.named_parameters()
            if "lora_A" in n or "lora_B" in n
        ]
        far = [torch.norm(p @ p.T - torch.eye(len(p), device=p.device)) for p in factors]
        return self.config.orth_reg_weight * torch.stack(far).mean()

    def ranks(self) -> dict[str, int]:
        """Ranks in use, by layer name."""
        found = {}
        for name, p in self.model.named_parameters():
            if "lora_E" in name:
                found[name.removeprefix("model.").partition(".lora_E")[0]] = int((p != 0).sum())
        return found

    def state(self) -> dict:
        """All that a resumed alignment needs beside the weights."""
        allocator = self.model.rankallocator
        moments = {key: getattr(allocator, key) for key in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
        return moments | {"rank_pattern": dict(self.config.rank_pattern or {})}

    def load_state(self, state: dict) -> None:
        """Put back what `state` returned."""
        device = next(self.model.parameters()).device
        for key in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
            setattr(
                self.model.rankallocator,
                key,
                {name: value.to(device) for name, value in state[key].items()},
            )
        self.config.rank_pattern = state["rank_pattern"]


@torch.no_grad()
def merge(network: nn.Module) -> None:
    """Put adapted weights in the place of frozen ones: inference at the cost of the frozen network.

    Tensors that are shared with the frozen encoder are exchanged, never written to.

    Raises:
        PekaError: an adapted weight is NaN or infinite (nothing is merged then).
    """
    bone.merge(network)
    layers = {
        n: m
        for n, m in network.named_modules()
        if hasattr(m, "lora_A") and hasattr(m, "merge") and not m.merged
    }
    for name, layer in layers.items():
        if not torch.isfinite(layer.get_delta_weight("default")).all():
            raise PekaError(
                f"merged weight of {name} is not finite: the alignment diverged, lower its learning rate"
            )
    for layer in layers.values():
        base = layer.get_base_layer()
        base.weight = nn.Parameter(
            base.weight.detach().clone(), requires_grad=False
        )  # peft adds in place
        layer.merge()
