"""Variables of the network that are wrong are named, and no secret is shown."""

import os

import pytest

from peka_core.common.errors import PekaError
from peka_core.downloads import network
from peka_core.downloads.network import check_network, without_secrets


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in network.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: os.environ.get("HF_TOKEN"))


WRONG = [
    (True, "HF_TOKEN", "“hf_secret123”"), (True, "HF_TOKEN", "hf_secret 123"),
    (True, "HF_TOKEN", "hf_secret\n123"), (True, "HF_ENDPOINT", "hub.example"),
    (True, "HF_ENDPOINT", "https://"), (True, "SSL_CERT_FILE", "/nope.pem"),
    (False, "REQUESTS_CA_BUNDLE", "/nope.pem"), (False, "CURL_CA_BUNDLE", "/nope.pem"),
    (True, "HTTPS_PROXY", "http://user:secret@proxy:port"), (False, "https_proxy", "http://[half"),
    (False, "ALL_PROXY", "other://proxy:1"),
]  # fmt: skip


@pytest.mark.parametrize(("hub", "name", "value"), WRONG)
def test_a_variable_that_ends_every_download_is_named(hub, name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(PekaError) as caught:
        check_network(hub)
    said = str(caught.value)
    assert name in said and "secret" not in said and "\n" not in said
    assert value in said or not value.endswith(".pem"), "a path helps to find the fault"


def test_what_works_is_not_refused(monkeypatch, tmp_path):
    (tmp_path / "ca.pem").write_text("x")
    certificates = (*network.HUB_CERTIFICATES, *network.WEB_CERTIFICATES)
    for name, value in {
        "HF_TOKEN": "hf_abcDEF123",
        "HF_ENDPOINT": "https://hub.example/",
        "HTTPS_PROXY": "http://user:p%40ss@proxy.example:8080",
        "HTTP_PROXY": "proxy.example:8080",
        "ALL_PROXY": "socks5h://localhost:1080",
        **dict.fromkeys(certificates, str(tmp_path / "ca.pem")),
    }.items():
        monkeypatch.setenv(name, value)
    check_network(True)
    check_network(False)
    monkeypatch.setenv("HF_TOKEN", "“hf_secret123”")  # plain addresses are asked without a token
    monkeypatch.setenv("SSL_CERT_FILE", "/nope.pem")  # which requests does not read
    check_network(False)


def test_an_error_of_another_library_is_shown_without_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("https_proxy", "http://me:password@proxy:1")
    error = ValueError("header b'Bearer hf_secret' by http://me:password@proxy:1\nand more")
    assert without_secrets(error) == "ValueError: header b'Bearer …' by http://…@proxy:1"
    assert without_secrets(KeyError()) == "KeyError: "
