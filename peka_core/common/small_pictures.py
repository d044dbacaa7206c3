"""Smaller pictures in notebooks: charts become PNG of 256 colours, images of tissue become JPEG."""

import functools
import io

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image


def use_small_pictures() -> None:
    """Register both formats in a notebook; elsewhere this does nothing."""
    try:
        formatters = get_ipython().display_formatter.formatters  # type: ignore[name-defined]
    except NameError:
        return
    plt.close(plt.figure())  # the inline backend registers its own formatter with the first figure
    for kind in ("PNG", "JPEG"):
        formatter = formatters[f"image/{kind.lower()}"]
        formatter.for_type(plt.Figure, functools.partial(_picture, kind=kind))


def _picture(figure: plt.Figure, kind: str) -> bytes | None:
    """The bytes of a figure if `kind` suits it (JPEG for RGB images, else PNG), otherwise None."""
    images = [image for ax in figure.axes for image in ax.images]
    tissue = any(np.asarray(image.get_array()).ndim == 3 for image in images)
    if tissue != (kind == "JPEG"):
        return None
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, dpi=figure.dpi, bbox_inches="tight")
    picture = Image.open(full).convert("RGB")
    if not tissue:
        picture = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(small, kind, quality=65, optimize=True)
    return small.getvalue()
