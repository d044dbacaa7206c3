"""Checks of the environment variables that a download needs, and error texts without secrets."""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import PekaError

HUB_CERTIFICATES = ("SSL_CERT_FILE",)  # read by httpx, the hub's client
WEB_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # read by requests; the first wins
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")
VARIABLES = ("HF_TOKEN", "HF_ENDPOINT", *HUB_CERTIFICATES, *WEB_CERTIFICATES, *PROXIES)


def has_token() -> bool:
    """Whether a token for the Hugging Face hub is set or saved."""
    import huggingface_hub  # takes a second

    return bool(huggingface_hub.get_token())


def check_network(hub: bool) -> None:
    """Refuse environment variables with which every download would fail inside another library.

    Args:
        hub: True for a download by the hub's client, False for one from a plain address.

    Raises:
        PekaError: names every wrong variable, but never a token or a proxy's password.
    """
    problems = [*(_token_problems() if hub else ()), *_certificate_problems(hub)]
    problems += _address_problems(hub)
    if problems:
        raise PekaError(
            f"{'; '.join(problems)}. Nothing was downloaded. Correct this and run the command again."
        )


def _token_problems() -> Iterator[str]:
    import huggingface_hub

    token = huggingface_hub.get_token() or ""
    if not all("!" <= letter <= "~" for letter in token):
        name = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "The saved token (HF_TOKEN is not set)"
        yield f"{name} holds a quote, a space or another character that no token has"


def _certificate_problems(hub: bool) -> Iterator[str]:
    names = HUB_CERTIFICATES if hub else WEB_CERTIFICATES
    name = next((name for name in names if os.environ.get(name)), None)
    if name and not os.access(os.environ[name], os.R_OK):
        state = "may not be read" if Path(os.environ[name]).exists() else "does not exist"
        yield f"{name}={os.environ[name]}: this file of certificates {state}"


def _address_problems(hub: bool) -> Iterator[str]:
    """Values that are no address. They may hold a password, so they are not shown."""
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
    """Kind and first line of an error of another library, without a token or a proxy's password."""
    text = (str(error).splitlines() or [""])[0]
    for secret in (os.environ.get("HF_TOKEN", "").strip(), *_passwords()):
        text = text.replace(secret, "…") if secret else text
    return f"{type(error).__name__}: {text[:120]}"


def variables_set() -> str:
    """The names of the variables of the network that are set, for the end of a message."""
    names = [name for name in VARIABLES if os.environ.get(name)]
    return f"; these variables are set and may be the cause: {', '.join(names)}" if names else ""


def _passwords() -> Iterator[str]:
    """What stands before the `@` of each proxy's address."""
    for name in PROXIES:
        if "@" in (value := os.environ.get(name, "")):
            yield value.rpartition("@")[0].rpartition("//")[2]
