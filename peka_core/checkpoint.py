"""Where an alignment stands, kept in a file after each epoch so that a killed one goes on from there."""

import math
from pathlib import Path

import torch
from torch import nn

from .files import write_whole
from .models.weight_files import load_safely


class Progress:
    """Everything that changes from epoch to epoch: weights, optimiser, random numbers, history, best epoch so far.

    Attributes:
        history: one row a finished epoch.
        step: optimiser steps done.
    """

    def __init__(
        self,
        student,
        head: nn.Module,
        optimiser,
        generator: torch.Generator,
        path: str | Path | None = None,
        keep_best: bool = True,
    ):
        self.keep_best = keep_best
        self.student, self.head, self.optimiser, self.generator = (
            student,
            head,
            optimiser,
            generator,
        )
        self.path = None if path is None else Path(path)
        self.history, self.step = [], 0
        self.lowest, self.kept, self.best = math.inf, 0, None

    def finish_epoch(self, row: dict) -> None:
        """Take in a finished epoch's row of the history; remember its weights if it is the best; write the file."""
        self.history.append(row)
        eligible = self.keep_best and self.student.within_budget(self.step)
        if eligible and row["aside_total"] < self.lowest:  # never true where nothing is set aside
            self.lowest, self.kept, self.best = row["aside_total"], row["epoch"], self._weights()
        if self.path is not None:
            write_whole(self.path, lambda path: torch.save(self._state(), path))

    def restore_best(self) -> int:
        """Give the student the weights of the best epoch, the last where none was chosen; returns its number."""
        if self.best is None:
            return self.history[-1]["epoch"]
        self.student.load_state_dict(self.best, strict=False)
        return self.kept

    def resume(self) -> None:
        """Go on from the file, where there is one."""
        if self.path is None or not self.path.exists():
            return
        # on the CPU: Adam's step numbers stay where they are loaded, and on a GPU it would wait for each of them at each step
        state = load_safely(self.path)
        self.student.load_state_dict(state["weights"], strict=False)
        self.head.load_state_dict(state["head"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.student.device)
        if state["allocation"] is not None:
            self.student.allocation.load_state(state["allocation"])
        for name in ("history", "step", "lowest", "kept", "best"):
            setattr(self, name, state[name])

    def _weights(self) -> dict:
        """What is trained, copied into main memory."""
        return {
            name: p.detach().to("cpu", copy=True)
            for name, p in self.student.named_parameters()
            if p.requires_grad
        }

    def _state(self) -> dict:
        on_gpu = torch.device(self.student.device).type == "cuda"
        return {
            "weights": self._weights(), "head": self.head.state_dict(), "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(), "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.student.device) if on_gpu else None,
            "allocation": None if self.student.allocation is None else self.student.allocation.state(),
            **{name: getattr(self, name) for name in ("history", "step", "lowest", "kept", "best")},
        }  # fmt: skip
