"""Variables of the network that are wrong are named before a download, and no secret is shown."""

import pytest
from damage import refused
from fake_hub import hub  # noqa: F401

from peka_core.downloads.fetch import fetch, preflight
from peka_core.downloads.manifest import Download
from peka_core.downloads.network import check_network


@pytest.mark.parametrize(("of_hub", "name", "value"), [
    (True, "HF_TOKEN", "“hf_secret123”"), (True, "HF_TOKEN", "hf_secret 123"),
    (True, "HF_TOKEN", "hf_secret\n123"), (True, "HF_ENDPOINT", "hub.example"),
    (True, "HF_ENDPOINT", "https://"), (True, "SSL_CERT_FILE", "/nope.pem"),
    (False, "REQUESTS_CA_BUNDLE", "/nope.pem"), (False, "CURL_CA_BUNDLE", "/nope.pem"),
    (True, "HTTPS_PROXY", "http://user:secret@proxy:port"), (False, "https_proxy", "http://[half"),
    (False, "ALL_PROXY", "other://proxy:1"),
])  # fmt: skip
def test_a_variable_that_ends_every_download_is_named(of_hub, name, value, hub, monkeypatch):
    file = Download("toy/a.bin", hub.url + "a.bin", repo="me/toy" if of_hub else "", name="a.bin")
    monkeypatch.setenv(name, value)
    for ask in (fetch, preflight):
        said = refused([file], name, call=ask)
        assert "secret" not in said and "\n" not in said
        assert value in said or not value.endswith(".pem"), "a path helps to find the fault"
    assert hub.asked == []
    file.place.parent.mkdir(parents=True)
    file.place.write_bytes(b"hello\n")
    preflight([file])  # nothing has to be downloaded


def test_what_works_is_not_refused(hub, monkeypatch):
    works = {"HTTP_PROXY": "proxy.example:8080", "ALL_PROXY": "socks5h://me:p%40ss@localhost:1"}
    works |= {"HF_TOKEN": "hf_abcDEF123", "SSL_CERT_FILE": __file__, "CURL_CA_BUNDLE": __file__}
    for name, value in works.items():
        monkeypatch.setenv(name, value)
    check_network(True)
    monkeypatch.setenv("HF_TOKEN", "“hf_secret123”")  # plain addresses are asked without a token
    monkeypatch.setenv("SSL_CERT_FILE", "/nope.pem")  # which requests does not read
    check_network(False)
