"""The state of an alignment after an epoch, and the file from which a killed alignment goes on."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..common.files import write_whole
from ..models.weight_files import load_safely

if TYPE_CHECKING:
    from ..student import Student

NUMBERS = ("history", "step", "lowest", "kept", "best")


class TrainingState:
    """All that changes while a student is trained.

    Attributes:
        history: one row for each finished epoch.
        step: number of optimiser steps done.
        lowest: lowest validation loss so far; kept: its epoch (0: none); best: its weights.
    """

    def __init__(
        self,
        student: "Student",
        classifier: nn.Module,
        optimiser: torch.optim.Optimizer,
        generator: torch.Generator,
    ):
        self.student, self.classifier = student, classifier
        self.optimiser, self.generator = optimiser, generator
        self.history: list[dict] = []
        self.step, self.lowest, self.kept = 0, math.inf, 0
        self.best: dict | None = None

    def keep(self, epoch: int, validation_loss: float) -> None:
        """Remember the weights of this epoch, the best one so far."""
        self.lowest, self.kept, self.best = validation_loss, epoch, self._weights()

    def restore_kept(self) -> int:
        """Give the student the weights of the kept epoch, or leave the last; returns the epoch."""
        if self.best is None:
            return self.history[-1]["epoch"]
        self.student.load_state_dict(self.best, strict=False)
        return self.kept

    def save(self, path: str | Path) -> None:
        """Write everything that `load` needs, whole or not at all."""
        device = self.student.device
        on_gpu = torch.device(device).type == "cuda"
        state = {name: getattr(self, name) for name in NUMBERS} | {
            "weights": self._weights(),
            "classifier": self.classifier.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "allocation": self.student.allocation.state(),
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device) if on_gpu else None,
        }
        write_whole(Path(path), lambda path: torch.save(state, path))

    def load(self, path: str | Path) -> None:
        """Go on from a file that `save` wrote."""
        # Everything is loaded on the CPU. Adam's step counts must stay there: on a GPU, each step
        # would wait for each of them.
        state = load_safely(Path(path))
        self.student.load_state_dict(state["weights"], strict=False)
        self.classifier.load_state_dict(state["classifier"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.student.allocation.load_state(state["allocation"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.student.device)
        for name in NUMBERS:
            setattr(self, name, state[name])

    def _weights(self) -> dict:
        """Copies of all trained weights in main memory."""
        trained = [(n, p) for n, p in self.student.named_parameters() if p.requires_grad]
        return {name: p.detach().to("cpu", copy=True) for name, p in trained}
