"""`peka push`: what is said before an upload, what is sent, and what is refused."""

from types import SimpleNamespace

import pytest
from test_predict import save

from peka_core.commands.command_line import _parser
from peka_core.common.errors import PekaError
from peka_core.downloads.network import VARIABLES

FILES = {
    "README.md", "card.json", "familiar.safetensors", "genes.csv", "head.safetensors",
    "student/adapter.safetensors", "student/card.json", "student/projector.safetensors",
}  # fmt: skip


class FakeHub:
    """The part of huggingface_hub.HfApi that an upload uses; it keeps what it is sent."""

    endpoint = "https://hub"

    def __init__(self):
        self.private, self.sent, self.fails = {}, None, False

    def create_repo(self, to, private, exist_ok):
        assert exist_ok
        self.private.setdefault(to, private)

    def repo_info(self, to):
        return SimpleNamespace(private=self.private[to])

    def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
        if self.fails:
            raise RuntimeError("403 for token hf_secret")
        self.sent = repo_id, folder_path, set(allow_patterns)


@pytest.fixture
def hub(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    fake = FakeHub()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    return fake


@pytest.fixture
def model(tmp_path):
    save(tmp_path / "model", licences={"encoder": "CC-BY-NC-ND-4.0"})
    (tmp_path / "model/private_notes.txt").write_text("of P1")
    return tmp_path / "model"


def push(*words):
    arguments = _parser().parse_args(["push", *map(str, words)])
    return arguments.command(arguments)


def test_nothing_is_sent_before_a_yes_and_then_the_files_of_the_card_alone(hub, model, capsys):
    assert push(model, "--to", "me/model") == 1 and hub.sent is None and not hub.private
    said = capsys.readouterr().out
    assert "private" in said and "CC-BY-NC-ND-4.0" in said and "--yes" in said
    assert all(name in said for name in FILES) and "private_notes" not in said
    assert push(model, "--to", "me/model", "--yes") == 0
    assert hub.sent == ("me/model", model, FILES) and hub.private == {"me/model": True}
    assert push(model, "--to", "me/open", "--yes", "--public") == 0
    assert hub.private["me/open"] is False


def test_a_public_repository_a_missing_token_and_a_changed_model_are_refused(
    hub, model, monkeypatch
):
    hub.private["me/open"] = False
    with pytest.raises(PekaError, match="me/open"):
        push(model, "--to", "me/open", "--yes")
    with pytest.raises(PekaError, match="--to"):
        push(model, "--to", "https://hub/me/model", "--yes")
    hub.fails = True
    with pytest.raises(PekaError, match="me/model") as refused:
        push(model, "--to", "me/model", "--yes")
    assert "hf_secret" not in str(refused.value)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(PekaError, match="HF_TOKEN"):
        push(model, "--to", "me/model", "--yes")
    (model / "genes.csv").write_text("gene\n")
    with pytest.raises(PekaError, match="genes.csv"):
        push(model, "--to", "me/model", "--yes")
    assert hub.sent is None
