"""What a student learns from, checked before training starts, and which spots validate it."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .common.errors import PekaError
from .recipe import Recipe


@dataclass(frozen=True)
class TrainingData:
    """One row for each of n spots, and the numbers of those rows that are training spots.

    Attributes:
        tiles: uint8 (n, h, w, 3), an array or a reader that takes an array of row numbers.
        targets: X_teacher (n, d_t), or other values that the projector should predict.
        labels: pseudo-labels (n,), whole numbers from 0 to k - 1.
        groups: patient of each spot (n,), or its section if there is one patient.
        rows: the training spots, as row numbers or as a mask (n,); None means all n. Nothing is
            learned from the other spots.

    Raises:
        PekaError: lengths differ, or `rows` are not different row numbers of these spots.
    """

    tiles: Any
    targets: Any
    labels: Any
    groups: Any
    rows: Any = None

    def __post_init__(self) -> None:
        names = ("tiles", "targets", "labels", "groups")
        lengths = {name: len(getattr(self, name)) for name in names}
        n = lengths["groups"]
        if len(set(lengths.values())) > 1:
            raise PekaError(f"training data need one row for each spot everywhere, not {lengths}")
        rows = np.arange(n) if self.rows is None else np.asarray(self.rows)
        if rows.dtype == bool and rows.shape == (n,):
            rows = np.flatnonzero(rows)
        numbers = rows.ndim == 1 and len(rows) and rows.dtype.kind in "iu"
        if not numbers or rows.min() < 0 or rows.max() >= n or len(np.unique(rows)) < len(rows):
            raise PekaError(
                f"rows must be a mask ({n},) with a training spot, or different whole numbers from "
                f"0 to {n - 1}, at least one; got {rows.dtype} {rows.shape}"
            )
        object.__setattr__(self, "rows", rows)

    def check(self, student: Any, recipe: Recipe) -> None:
        """Refuse data that this student cannot learn from.

        Raises:
            PekaError: the method trains nothing, the recipe gives no loss a weight, or targets or
                labels of the training spots do not fit the student or the recipe.
        """
        if student.projector is None:
            raise PekaError(f"method {student.method!r} trains nothing; take projector_only")
        if not (recipe.lambda_kd or recipe.lambda_struct):
            raise PekaError("lambda_kd and lambda_struct are both 0: give one loss a weight")
        shape = np.shape(self.targets)
        if len(shape) != 2 or shape[1] != student.d_teacher:
            raise PekaError(f"targets must be (n, {student.d_teacher}) here, not {shape}")
        if not np.isfinite(np.asarray(self.targets)[self.rows]).all():
            raise PekaError(
                "targets have NaN or infinite values on training spots: leave out the spots that "
                "the teacher could not use"
            )
        labels = np.asarray(self.labels)[self.rows]
        whole = labels.dtype.kind in "iuf" and np.array_equal(labels, np.rint(labels))
        if not whole or labels.min() < 0 or labels.max() >= recipe.k:
            raise PekaError(
                f"labels of the training spots must be whole numbers from 0 to {recipe.k - 1} "
                f"(k = {recipe.k} in the recipe): look at the spots without a label"
            )

    def digest(self) -> str:
        """Twelve hex digits that name the training spots, their targets, labels and groups."""
        total = hashlib.sha256(np.asarray(self.rows, np.int64).tobytes())
        for values, kind in ((self.targets, np.float32), (self.labels, np.int64)):
            total.update(np.asarray(values)[self.rows].astype(kind).tobytes())
        total.update("\n".join(map(str, np.asarray(self.groups)[self.rows])).encode())
        return total.hexdigest()[:12]

    def on(self, device: str) -> "TrainingData":
        """The same data with targets (float32) and labels (int64) as tensors on a device."""
        targets = torch.as_tensor(np.asarray(self.targets), dtype=torch.float32, device=device)
        labels = torch.as_tensor(np.asarray(self.labels), dtype=torch.long, device=device)
        return replace(self, targets=targets, labels=labels)

    def draw_validation(
        self, recipe: Recipe, generator: torch.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers of the spots to train on, and of the spots that only choose the epoch.

        Whole patients are drawn (single spots if `validation_by` is `spot`): the recipe's share of
        them, but at least one, and none if there is only one.
        """
        groups = self.rows
        if recipe.validation_by == "group":
            groups = np.asarray(self.groups)[self.rows]
        names = np.unique(groups)
        wanted = max(1, round(recipe.validation_share * len(names)))
        count = min(wanted, len(names) - 1) if recipe.validation_share > 0 else 0
        drawn = names[torch.randperm(len(names), generator=generator)[:count].numpy()]
        validates = np.isin(groups, drawn)
        return self.rows[~validates], self.rows[validates]
