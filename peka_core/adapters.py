"""What may change in the encoder: bone and bat (bone.py), LoRA and AdaLoRA (peft), all, or nothing.

All adapters sit in Linear layers that are found by name, never in a convolution. Only the method
`full` changes the tensors of the network itself.
"""

from typing import Any

import torch
from torch import nn

from . import bone
from .recipe import Recipe
from .training_parts.ranks import AdaLoraRanks, FixedRanks

ADALORA_START = 1.5  # AdaLoRA starts with this many times the rank that it ends with


def add(network: nn.Module, method: str, recipe: Recipe, seed: int = 0) -> FixedRanks:
    """Put the adapter of `method` into `network`, in place. Only trained weights require gradients.

    Args:
        recipe: layers, last_blocks; block (bone, bat); rank, alpha, adapter_dropout (LoRAs);
            reallocate.
        seed: random seed for LoRA's first factor. The second factor is zero at the start.

    Returns:
        The rank schedule: `AdaLoraRanks` for AdaLoRA with `reallocate`, otherwise `FixedRanks`.

    Raises:
        PekaError: no Linear layer has such a name, or the block size does not divide a layer.
    """
    if method in bone.WEIGHT_FUNCTIONS:
        bone.inject(network, recipe.layers, method, recipe.block, recipe.last_blocks)
    elif method == "full":
        trained = bone.last(network, recipe.last_blocks) if recipe.last_blocks else [network]
        for part in trained:
            part.requires_grad_(True)
    if method not in ("lora", "adalora"):
        return FixedRanks()

    from peft import AdaLoraConfig, LoraConfig, inject_adapter_in_model  # takes seconds to import
    from peft.tuners.adalora import AdaLoraModel

    names = bone.linear_layers(network, recipe.layers, recipe.last_blocks)
    common: dict[str, Any] = {"lora_dropout": recipe.adapter_dropout, "target_modules": names}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if method == "lora":
            config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, **common)  # type: ignore
            inject_adapter_in_model(config, network)
            return FixedRanks()
        start = round(ADALORA_START * recipe.rank) if recipe.reallocate else recipe.rank
        common |= {"init_r": start, "target_r": recipe.rank, "total_step": 100}
        common["lora_alpha"] = recipe.alpha * start / recipe.rank
        model = AdaLoraModel(network, AdaLoraConfig(**common), "default")  # type: ignore
    return AdaLoraRanks(model) if recipe.reallocate else FixedRanks()


@torch.no_grad()
def merge(network: nn.Module) -> None:
    """Put adapted weights in the place of frozen ones. A merged network is as fast as the original.

    The frozen tensors may be shared, so they are replaced and never changed in place.

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
        copied = base.weight.detach().clone()  # peft adds in place
        base.weight = nn.Parameter(copied, requires_grad=False)
        layer.merge()
