"""What an import did, for a person."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Imported:
    """What an import did, for a person.

    Attributes:
        sample, spots, genes, um_per_px: of the new section.
        ruler: the figure to look at.
        notes: what was left out, and what cannot be told.
        missing: what the cohort needs before `peka run own`; "" if nothing.
    """

    sample: str
    spots: int
    genes: int
    um_per_px: float
    ruler: Path
    notes: list[str] = field(default_factory=list)
    missing: str = ""

    def __str__(self) -> str:
        lines = [
            f"{self.sample}: {self.spots} spots, {self.genes} genes, {self.um_per_px:.4f} um/px"
        ]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  look at the ruler: {self.ruler}"]
        return "\n".join(lines + ([f"  missing: {self.missing}"] if self.missing else []))
