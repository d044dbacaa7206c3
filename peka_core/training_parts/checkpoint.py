"""The state of an alignment after an epoch, and the file from which it can be resumed."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..common.errors import PekaError
from ..common.files import write_whole
from ..models.weight_files import load_safely
from . import workers

if TYPE_CHECKING:
    from ..student import Student

NUMBERS = ("history", "step", "lowest", "kept", "best")


class TrainingState:
    """Everything that changes while a student is trained.

    Args:
        made_for: what the alignment depends on. A checkpoint that was made for something else is
            refused.

    Attributes:
        history: one entry for each finished epoch.
        step: number of finished optimiser steps.
        lowest, kept, best: the lowest validation loss so far, its epoch (0: none), its weights.
    """

    def __init__(
        self,
        student: "Student",
        classifier: nn.Module,
        optimiser: torch.optim.Optimizer,
        generator: torch.Generator,
        made_for: dict,
    ):
        self.made_for = made_for
        self.student, self.classifier = student, classifier
        self.optimiser, self.generator = optimiser, generator
        self.history: list[dict] = []
        self.step, self.lowest, self.kept = 0, math.inf, 0
        self.best: dict | None = None

    def keep(self, epoch: int, validation_loss: float) -> None:
        """Remember the weights of this epoch, the best one so far."""
        self.lowest, self.kept, self.best = validation_loss, epoch, self._weights()

    def restore_kept(self) -> int:
        """Give the student the weights of the best epoch, if any; return the kept epoch."""
        if self.best is None:
            return self.history[-1]["epoch"]
        self.student.load_state_dict(self.best, strict=False)
        return self.kept

    def save(self, path: str | Path) -> None:
        """Write everything that `load` needs. A killed process leaves the previous file.

        Under torchrun, only the first worker writes; the others have the same state.
        """
        if workers.rank():
            return
        device = self.student.device
        on_gpu = torch.device(device).type == "cuda"
        state = {name: getattr(self, name) for name in NUMBERS} | {
            "made_for": self.made_for,
            "weights": self._weights(),
            "classifier": self.classifier.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ranks": self.student.rank_schedule.state(),
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device) if on_gpu else None,
        }
        write_whole(Path(path), lambda path: torch.save(state, path))

    def load(self, path: str | Path) -> None:
        """Continue from a file that `save` wrote.

        Raises:
            PekaError: the file is damaged, or it was made for another alignment.
        """
        # Everything is loaded on the CPU. Adam's step counts must stay there, because
        # reading each of them from a GPU would slow down each step.
        state = load_safely(Path(path))
        found = state.get("made_for", {})
        if found != self.made_for:
            differ = [name for name in self.made_for if found.get(name) != self.made_for[name]]
            raise PekaError(
                f"{path} is the checkpoint of another alignment: {', '.join(differ)} differ. Give "
                "this alignment a file of its own."
            )
        self.student.load_state_dict(state["weights"], strict=False)
        self.classifier.load_state_dict(state["classifier"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.student.rank_schedule.load_state(state["ranks"])
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
