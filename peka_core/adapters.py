"""What may change in the encoder: bone and bat (bone.py), LoRA and AdaLoRA (peft), all, or nothing.

All adapters sit in Linear layers that are found by name, never in a convolution. Only the method
`full` changes the tensors of the network itself.
"""

from typing import Any

import torch
from torch import Tensor, nn

from . import bone
from .recipe import Recipe

ADALORA_START = 1.5  # AdaLoRA starts with this many times the rank that it ends with


class NoAllocation:
    """The rank allocation of all methods but AdaLoRA: no rank moves, so it has nothing to do."""

    def start(self, steps: int) -> None: ...

    def penalty(self) -> Tensor | float:
        return 0.0

    def after_step(self, step: int) -> None: ...

    def within_budget(self, steps_done: int) -> bool:
        return True

    def ranks(self) -> dict[str, int]:
        return {}

    def state(self) -> dict:
        return {}

    def load_state(self, state: dict) -> None: ...


class RankAllocation(NoAllocation):
    """AdaLoRA's allocation: peft moves ranks between layers, and our loop tells it of each step.

    Args:
        model: peft's AdaLoraModel.
    """

    def __init__(self, model: Any):
        self.model, self.config = model, model.peft_config["default"]

    def start(self, steps: int) -> None:
        """Plan the number of ranks: all in the first tenth of `steps`, the target in the last 3/10.

        Ranks are weighed at every step. Otherwise Adam's momentum would bring back, between two
        weighings, those that were taken out. A single step leaves no room for this plan.
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
        """Take out the least important ranks. Their gradients, which weigh them, must be there."""
        self.model.update_and_allocate(step)

    def within_budget(self, steps_done: int) -> bool:
        """Whether the ranks are down to their target. A larger student is not kept."""
        return steps_done > self.config.total_step - self.config.tfinal

    def ranks(self) -> dict[str, int]:
        """Ranks in use as `rank_<layer>`."""
        scales = {n: p for n, p in self.model.named_parameters() if "lora_E" in n}
        layers = {n: n.removeprefix("model.").partition(".lora_E")[0] for n in scales}
        return {f"rank_{layers[n]}": int((p != 0).sum()) for n, p in scales.items()}

    def state(self) -> dict:
        """What a resumed alignment needs beside the weights."""
        moments = {name: getattr(self.model.rankallocator, name) for name in MOMENTS}
        return moments | {"rank_pattern": dict(self.config.rank_pattern or {})}

    def load_state(self, state: dict) -> None:
        """Put back what `state` returned."""
        device = next(self.model.parameters()).device
        for name in MOMENTS:
            moments = {layer: value.to(device) for layer, value in state[name].items()}
            setattr(self.model.rankallocator, name, moments)
        self.config.rank_pattern = state["rank_pattern"]


MOMENTS = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # peft's running importance of each rank


def add(network: nn.Module, method: str, recipe: Recipe, seed: int = 0) -> NoAllocation:
    """Put the adapter of `method` into `network`, in place. Only trained weights require gradients.

    Args:
        recipe: targets; block (bone, bat); rank, alpha, adapter_dropout (LoRAs); reallocate.
        seed: draws LoRA's first factor. The second one is zero, so nothing changes at the start.

    Returns:
        What the loop tells of each step: a `RankAllocation` for AdaLoRA with `reallocate`.

    Raises:
        PekaError: a target names no Linear layer, or the block size does not divide a layer.
    """
    if method in bone.WEIGHTS:
        bone.inject(network, recipe.targets, method, recipe.block)
    elif method in ("lora", "adalora"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _add_lora(network, method, recipe)
    elif method == "full":
        network.requires_grad_(True)
    return NoAllocation()


def _add_lora(network: nn.Module, method: str, recipe: Recipe) -> NoAllocation:
    from peft import AdaLoraConfig, LoraConfig, inject_adapter_in_model  # seconds to import
    from peft.tuners.adalora import AdaLoraModel

    names = bone.linear_targets(network, recipe.targets)
    common: dict[str, Any] = {"lora_dropout": recipe.adapter_dropout, "target_modules": names}
    if method == "lora":
        common |= {"r": recipe.rank, "lora_alpha": recipe.alpha}
        inject_adapter_in_model(LoraConfig(**common), network)
        return NoAllocation()
    start = round(ADALORA_START * recipe.rank) if recipe.reallocate else recipe.rank
    alpha = recipe.alpha * start / recipe.rank
    ranks: dict[str, Any] = {"init_r": start, "target_r": recipe.rank, "lora_alpha": alpha}
    config = AdaLoraConfig(**ranks, **common, total_step=100)
    model = AdaLoraModel(network, config, "default")
    return RankAllocation(model) if recipe.reallocate else NoAllocation()


@torch.no_grad()
def merge(network: nn.Module) -> None:
    """Put adapted weights in the place of frozen ones, so that inference costs what it cost before.

    Tensors that the frozen encoder shares are exchanged, never written to.

    Raises:
        PekaError: an adapted weight is NaN or infinite. Nothing is merged then.
    """
    bone.merge(network)
    layers = {n: m for n, m in network.named_modules() if hasattr(m, "lora_A")}
    layers = {n: m for n, m in layers.items() if hasattr(m, "merge") and not m.merged}
    for name, layer in layers.items():
        bone.check_finite(name, layer.get_delta_weight("default"))
    for layer in layers.values():
        base = layer.get_base_layer()
        own = base.weight.detach().clone()  # peft adds in place
        base.weight = nn.Parameter(own, requires_grad=False)
        layer.merge()
