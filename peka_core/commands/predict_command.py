"""`peka predict`: genes on a slide, from a model folder."""

import argparse
from pathlib import Path

from ..common.errors import PekaError
from ..common.typed_values import absolute
from ..training_parts import workers


def add_predict(command) -> None:
    """Add the command; `command(name, function, text)` returns its parser."""
    text = "predict genes on a slide with a model folder (peka export), and draw maps"
    parser = command("predict", _predict, text)
    option = lambda name, **more: parser.add_argument(name, type=absolute, **more)
    option("--model", required=True, metavar="DIR", help="folder that `peka export` wrote")
    slide = "SVS, NDPI, MRXS, TIFF, JPEG or PNG at full resolution"
    option("--slide", required=True, metavar="FILE", help=slide)
    out = "new or empty folder; the same command goes on in it after an interruption"
    option("--out", required=True, metavar="DIR", help=out)
    size = "micrometres per px, where the file does not say it"
    parser.add_argument("--um-per-px", type=float, metavar="X", help=size)
    mask = "outline of the tissue in px of the full resolution, as QuPath exports it"
    option("--mask", metavar="GEOJSON", help=mask)
    option("--region", metavar="GEOJSON", help="predict only inside this outline")
    spots = "predict at these centres: a CSV with x and y in px of the full resolution, or an h5ad"
    option("--spots", metavar="FILE", help=spots)
    device = "auto, cpu, cuda or cuda:N (default: %(default)s)"
    parser.add_argument("--device", default="auto", help=device)
    weights = "a local file of the encoder's weights, which is used instead of a download"
    parser.add_argument("--weights", metavar="ENCODER=PATH", help=weights)
    encoder = "the encoder of the model, if it is your own"
    parser.add_argument("--encoder", metavar="FILE.py:FUNCTION", help=encoder)


def _predict(arguments: argparse.Namespace) -> None:
    """Check the slide and its places first, because the encoder is slow to load."""
    from ..predict import load_model, read_card
    from ..slides.image import open_slide
    from ..slides.prediction import find_places, predict_slide
    from ..slides.trust import trust_sentences

    if workers.count() > 1:
        raise PekaError("peka predict runs in one process; start it without torchrun")
    card = read_card(arguments.model)
    weights = _weights(arguments.weights, card["encoder"]["name"])
    slide = open_slide(arguments.slide, arguments.um_per_px)
    places = find_places(slide, arguments.spots, arguments.mask, arguments.region)
    print(f"{slide.path.name}: {len(places.centres):,} tiles of 112 um", flush=True)
    model = load_model(arguments.model, arguments.device, weights, arguments.encoder)
    found = predict_slide(model, slide, arguments.out, places)
    print(*trust_sentences(found), sep="\n")
    print(
        f"\n{arguments.out / 'index.html'}: all maps in one page\n{arguments.out / 'summary.csv'}"
    )
    print(f"{arguments.out / 'detections.geojson.gz'}: for QuPath (File, Import objects from file)")


def _weights(text: str | None, encoder: str) -> Path | None:
    """The path of `ENCODER=PATH`, which must name the encoder of the model."""
    if text is None:
        return None
    name, _, path = text.partition("=")
    if name != encoder or not path:
        raise PekaError(f"--weights takes {encoder}=PATH for this model, not {text!r}")
    return absolute(path)
