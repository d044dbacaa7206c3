"""Checks of the environment variables that a download needs, and error texts without secrets."""

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from ..common.errors import PekaError

HUB_CERTIFICATES = ("SSL_CERT_FILE",)  # read by httpx, the hub's client
WEB_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # read by requests; the first wins
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")
VARIABLES = ("HF_TOKEN", "HF_ENDPOINT", *HUB_CERTIFICATES, *WEB_CERTIFICATES, *PROXIES)


def _token() -> str:
    import huggingface_hub  # takes a second

    return huggingface_hub.get_token() or ""


def has_token() -> bool:
    """Whether a token for the Hugging Face hub is set or saved."""
    return bool(_token())


def check_network(hub: bool) -> None:
    """Refuse environment variables with which every download would fail inside another library.

    Args:
        hub: True for a download by the hub's client, False for one from a plain address.

    Raises:
        PekaError: names every wrong variable, but never a token or a proxy's password.
    """
    if text := "; ".join(_problems(hub)):
        raise PekaError(f"{text}. Nothing was downloaded. Correct this and run the command again.")


def _problems(hub: bool) -> Iterator[str]:
    """What is wrong. Tokens and addresses may hold a secret, so they are not shown."""
    for name in [n for n in (HUB_CERTIFICATES if hub else WEB_CERTIFICATES) if os.environ.get(n)][
        :1
    ]:
        if not os.access(os.environ[name], os.R_OK):
            yield f"{name}={os.environ[name]}: there is no such file of certificates to read"
    if hub and not all("!" <= letter <= "~" for letter in _token()):
        name = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "The saved token (HF_TOKEN is not set)"
        yield f"{name} holds a quote, a space or another character that no token has"
    endpoint = os.environ.get("HF_ENDPOINT")
    if hub and endpoint and not _is_address(endpoint, ("http", "https")):
        yield "HF_ENDPOINT is not an address; expected one such as https://huggingface.co"
    for name in PROXIES:
        proxy = os.environ.get(name)
        if proxy and not _is_address(proxy if "://" in proxy else f"http://{proxy}", PROXY_SCHEMES):
            yield f"{name} is not an address; expected one such as http://proxy.example:8080"


def _is_address(text: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(text.strip())
        return parts.scheme.lower() in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is not a number, or a bracket is not closed
        return False


def without_secrets(error: Exception) -> str:
    """Name and first line of another library's error, without a token or a proxy's password."""
    text = (str(error).splitlines() or [""])[0]
    proxies = [os.environ.get(name, "") for name in PROXIES]
    passwords = [proxy.rpartition("@")[0].rpartition("//")[2] for proxy in proxies]
    for secret in (os.environ.get("HF_TOKEN", "").strip(), *passwords):
        text = text.replace(secret, "…") if secret else text
    return f"{type(error).__name__}: {text[:120]}"


def variables_set() -> str:
    """The end of a message: the names of the network's variables that are set."""
    names = [name for name in VARIABLES if os.environ.get(name)]
    return f"; these variables are set and may be the cause: {', '.join(names)}" if names else ""
