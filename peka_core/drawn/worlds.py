"""Worlds: cohorts that the demo draws beside its own, to run one study on both."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class World:
    """One of a run's cohorts, and what it changes in the profile.

    Attributes:
        name: what tables call it; `on` is the profile's own cohort.
        options: changes of the source's options, (name, value) pairs.
        recipe: changes of the recipe, likewise.
        same_tissue: it shows the tiles of the profile's own cohort, and only its counts differ.
    """

    name: str = "on"
    options: tuple[tuple[str, Any], ...] = ()
    recipe: tuple[tuple[str, Any], ...] = ()
    same_tissue: bool = False


OWN = World()


def hidden_cues(share: float) -> World:
    """The profile's own tissue, with this share of the cue genes' law hidden from `mini`."""
    return World(
        f"hidden_{share}" if share else "off", options=(("hidden", share),), same_tissue=True
    )


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
