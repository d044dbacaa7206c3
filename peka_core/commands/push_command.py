"""`peka push MODEL --to USER/NAME`: upload a model folder to the Hugging Face hub."""

import argparse
import re
from pathlib import Path

from ..common.errors import PekaError
from ..common.typed_values import absolute
from ..downloads.network import check_network, has_token, variables_set, without_secrets


def add_push(command) -> None:
    """Add `peka push`; `command(name, function, text)` gives its parser."""
    parser = command("push", _push, "upload a model folder to the Hugging Face hub, privately")
    parser.add_argument("model", type=absolute, help="folder that `peka export` wrote")
    to = "repository on the hub; it is made if there is none"
    parser.add_argument("--to", required=True, metavar="USER/NAME", help=to)
    public = "everyone may see it; without this option the repository is private"
    parser.add_argument("--public", action="store_true", help=public)
    parser.add_argument("--yes", action="store_true", help="upload; without it nothing is sent")


def _push(arguments: argparse.Namespace) -> int:
    """Say what would be uploaded and under which terms; upload it if `--yes` is given."""
    from ..predict import CARD, README, read_card

    folder, to = arguments.model, arguments.to
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", to):
        raise PekaError(f"--to {to!r}: expected USER/NAME, a repository on the hub")
    card = read_card(folder)
    names = sorted([*card["sha256"], CARD, *([README] if (folder / README).is_file() else [])])
    size = sum((folder / name).stat().st_size for name in names) / 1e6
    seen = "public" if arguments.public else "private"
    print(f"{len(names)} files, {size:.1f} MB, to the {seen} repository {to}:")
    print(*(f"  {name}" for name in names), sep="\n")
    print("Terms that the model inherits; it is for you to check that you may share it:")
    print(*(f"  {what}: {terms}" for what, terms in card["licences"].items()), sep="\n")
    if not arguments.yes:
        print("Nothing was uploaded. Add --yes to upload.")
        return 1
    print(f"uploaded to {upload(folder, to, names, arguments.public)}")
    return 0


def upload(folder: Path, to: str, names: list[str], public: bool) -> str:
    """Upload some files of a folder and return the address of the repository.

    Raises:
        PekaError: no token is set, the repository exists and is public although a private one is
            wanted, or the hub refuses.
    """
    check_network(hub=True)
    if not has_token():
        raise PekaError(
            "no token for the hub is set: set HF_TOKEN to one that may write, or log in with "
            "`hf auth login`. Nothing was uploaded."
        )
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(to, private=not public, exist_ok=True)
        is_private = api.repo_info(to).private
        if public or is_private:
            what = f"peka_core model of {len(names)} files"
            api.upload_folder(
                repo_id=to, folder_path=folder, allow_patterns=names, commit_message=what
            )
    except Exception as error:  # the hub, its client and the network each raise their own
        raise PekaError(
            f"{to}: the upload failed ({without_secrets(error)}){variables_set()}. Run the same "
            "command again; files that arrived are not sent twice."
        ) from error
    if not public and not is_private:
        raise PekaError(
            f"{to} exists and is public. Nothing was uploaded: choose another --to, or add "
            "--public if everyone may see the model."
        )
    return f"{api.endpoint}/{to}"
