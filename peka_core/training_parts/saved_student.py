"""A trained student on disk: two files of tensors, and card.json, which says what they are."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from ..common.device import versions
from ..common.errors import PekaError
from ..common.files import sha256, write_json, write_whole
from ..models.weight_files import load_safely

if TYPE_CHECKING:
    from ..encoders import Encoder
    from ..student import Student

# the two files of a saved student, and how the names of their tensors begin
PARTS = {"adapter": "network.", "projector": "projector."}
# fields of the recipe that card.json of a saved student holds
ON_CARD = (
    "block", "rank", "alpha", "layers", "last_blocks", "hidden", "dropout", "projector",
    "reallocate", "pixels",
)  # fmt: skip


def save(student: "Student", folder: str | Path, extra: dict) -> None:
    """Write the two files and card.json; `extra` are further entries of the card."""
    folder, encoder, digests = Path(folder), student.encoder, {}
    trained = {n: p.detach() for n, p in student.named_parameters() if p.requires_grad}
    for part, prefix in PARTS.items():
        part_of = {n: p for n, p in trained.items() if n.startswith(prefix)}
        tensors = {n.removeprefix(prefix): p.cpu().contiguous() for n, p in part_of.items()}
        path = folder / f"{part}.safetensors"
        write_whole(path, functools.partial(save_file, tensors))
        digests[part] = sha256(path)
    card = {
        "encoder": encoder.name, "revision": encoder.revision, "digest": encoder.digest,
        "precision": encoder.precision, "dim": encoder.dim, "method": student.method,
        "d_teacher": student.d_teacher, **{name: getattr(student.recipe, name) for name in ON_CARD},
        "parameters": count_parameters(student), "versions": versions(), "sha256": digests,
    }  # fmt: skip
    write_json(folder / "card.json", extra | card)


def load(make: Callable[..., "Student"], folder: str | Path, encoder: "Encoder") -> "Student":
    """Give the saved tensors to the student that `make` returns.

    Args:
        make: called with method, d_teacher and the recipe's values (`ON_CARD`) of card.json.
    """
    folder = Path(folder)
    card = _read_card(folder, encoder)
    values = {name: card[name] for name in ON_CARD if name in card}
    student = make(card["method"], card["d_teacher"], values)
    state: dict[str, Tensor] = {}
    for part, prefix in PARTS.items():
        tensors = load_safely(folder / f"{part}.safetensors")
        state |= {prefix + name: tensor for name, tensor in tensors.items()}
    expected = {name for name, p in student.named_parameters() if p.requires_grad}
    if different := sorted(state.keys() ^ expected)[:4]:
        raise PekaError(
            f"the tensors in {folder} do not match its card.json: {different}; align again"
        )
    student.load_state_dict(state, strict=False)
    return student


def _read_card(folder: Path, encoder: "Encoder") -> dict:
    """Read card.json, and refuse an encoder with which the student was not trained."""
    path = folder / "card.json"
    if not path.exists():
        raise PekaError(f"{path} is missing: {folder} holds no finished student; run 03_alignment")
    try:
        card = json.loads(path.read_text())
        missing = {"encoder", "digest", "method", "d_teacher"} - card.keys()
    except (ValueError, AttributeError) as error:
        raise PekaError(f"{path} is damaged ({error}); align again") from error
    if missing:
        raise PekaError(f"{path} lacks {', '.join(sorted(missing))}; align again")
    trained_on = f"{folder} was trained on encoder {card['encoder']!r}"
    if card["encoder"] != encoder.name:
        raise PekaError(f"{trained_on}, not on {encoder.name!r}: load {card['encoder']!r}")
    if card["digest"] != encoder.digest:
        raise PekaError(
            f"{trained_on} with other weights (digest {card['digest'][:12]}) than those of the "
            f"given encoder ({encoder.digest[:12]}): use the same weights, or align again"
        )
    return card


def count_parameters(student: "Student") -> dict[str, int]:
    """Trained values of `adapter` and `projector`, and all values of the frozen `encoder`.

    For `full`, the trained values of the encoder count as adapter and as encoder.
    """
    counts = {"adapter": 0, "projector": 0, "encoder": 0}
    for name, p in student.named_parameters():
        trained = "adapter" if name.startswith("network.") else "projector"
        if ".ranknum." not in name:  # peft stores the number of ranks there, which is no weight
            counts[trained if p.requires_grad else "encoder"] += p.numel()
    return counts if student.method != "full" else counts | {"encoder": counts["adapter"]}
