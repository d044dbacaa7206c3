"""`mini`: the bundled 0.9 M parameter vision transformer, small enough for a laptop's CPU.

It is timm's VisionTransformer with a convolutional stem, so everything that works on UNI or
H-optimus-0 (module names, adapters, hooks) works on it. Its weights come from
scripts/pretrain_mini.py, and weights/mini.md is its card.
"""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

MINI_MEAN = (0.75, 0.50, 0.80)
MINI_STD = (0.18, 0.19, 0.10)
MINI_DIM = 128


class MiniStem(nn.Module):
    """Image -> tokens, in place of timm's PatchEmbed.

    The first operation averages 2 x 2 pixels (224 -> 112 px, 1 µm/px). Then follow
    four convolutions of stride 2 and a linear layer: 7 x 7 tokens of 16 µm.
    """

    def __init__(
        self,
        img_size=224,
        patch_size=32,
        in_chans=3,
        embed_dim=128,
        bias=True,
        dtype=None,
        device=None,
        **_,
    ):
        super().__init__()
        widths = (in_chans, 16, 32, 64, embed_dim)
        factory = {"dtype": dtype, "device": device}
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.halve = Halve()
        self.convs = nn.Sequential(*[
            layer
            for inner, outer in zip(widths, widths[1:])
            for layer in (
                nn.Conv2d(inner, outer, 3, stride=2, padding=1, bias=False, **factory),
                nn.BatchNorm2d(outer, **factory),
                nn.ReLU(inplace=True),
            )
        ])  # fmt: skip
        self.proj = nn.Linear(embed_dim, embed_dim, bias=bias, **factory)

    def forward(self, x):
        """(B, 3, 224, 224) -> (B, 49, 128)."""
        x = self.convs(self.halve(x))  # (B, 128, 7, 7)
        return self.proj(x.flatten(2).transpose(1, 2))  # (B, 128, 49) -> (B, 49, 128)


class Halve(nn.Module):
    """Mean of each 2 x 2 pixels, as a convolution: on CPU a third of the time of AvgPool2d."""

    def forward(self, x):
        """(B, 3, H, W) -> (B, 3, H / 2, W / 2)."""
        return nn.functional.conv2d(
            x, x.new_full((x.shape[1], 1, 2, 2), 0.25), stride=2, groups=x.shape[1]
        )


def explicit_attention(model):
    """Write attention out as softmax(q k) v in all blocks: at this size twice as fast on a CPU."""
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


def build_mini(seed=None):
    """The untrained network, (B, 3, 224, 224) -> (B, 128).

    Args:
        seed: of the initial weights, with the global generator left as it was. With None, weights
            come from the global generator.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = VisionTransformer(
            img_size=224, patch_size=32, embed_dim=MINI_DIM, depth=4, num_heads=4,
            class_token=False, global_pool="avg", num_classes=0, embed_layer=MiniStem,
        )  # fmt: skip
    return explicit_attention(model)
