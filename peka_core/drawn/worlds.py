"""Worlds: cohorts that the demo draws beside its own, to run one study on both."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class World:
    """One of a run's cohorts, and what it changes in the profile."""

    name: str = "on"  # in tables; `on` is the profile's own cohort
    options: tuple[tuple[str, Any], ...] = ()  # changes of the source's options: (name, value)
    recipe: tuple[tuple[str, Any], ...] = ()  # changes of the recipe: (name, value)
    same_tissue: bool = False  # True if it shows the tiles of the profile's own cohort


OWN = World()


def hidden_cues(share: float) -> World:
    """The profile's own tissue, with this share of the cue genes' law hidden from `mini`."""
    name = f"hidden_{share}" if share else "off"
    return World(name, options=(("hidden", share),), same_tissue=True)


OFF = hidden_cues(0.0)


def few_patients(values: dict) -> World:
    """Other tissue of so few patients that an alignment can learn its spots by heart.

    Args:
        values: a profile's `few`: `patients` and `epochs`. No patients validate the epochs.
    """
    return World(
        "few",
        options=(("patients", values["patients"]), ("folds", 2)),
        recipe=(("epochs", values["epochs"]), ("validation_share", 0.0)),
    )
