"""What a download needs of this machine's set-up, and errors of other libraries told in one line without a secret."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import PekaError
from ..files import CANNOT_WRITE

HUB_CERTIFICATES, WEB_CERTIFICATES = (
    ("SSL_CERT_FILE",),
    ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)  # of httpx, of requests
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


def check_network(hub: bool) -> None:
    """Refuse variables that would end every download inside another library: token, certificates, addresses.

    Args:
        hub: whether the Hugging Face hub is asked, by its own client; else a plain address.

    Raises:
        PekaError: names all variables at fault, never a token nor a proxy's password.
    """
    problems = [*(_token() if hub else ()), *_certificates(hub), *_addresses(hub)]
    if problems:
        raise PekaError(
            "; ".join(problems)
            + ". Nothing was downloaded: correct this, then run the same command again."
        )


def _token() -> Iterator[str]:
    """What is wrong with the token that would be sent to the hub; the token itself is not told."""
    from huggingface_hub import get_token  # a second to import

    token = get_token() or ""
    if not all("!" <= letter <= "~" for letter in token):
        where = (
            "HF_TOKEN"
            if os.environ.get("HF_TOKEN")
            else "the saved token (set HF_TOKEN, or log in to the hub again)"
        )
        odd = "characters that no token has, such as a typographic quote, a space or a line break"
        yield f"{where} holds {odd}: copy the token alone"


def _certificates(hub: bool) -> Iterator[str]:
    there = [
        name for name in (HUB_CERTIFICATES if hub else WEB_CERTIFICATES) if os.environ.get(name)
    ]
    for name in there[:1]:  # the first that is set is the one that is read
        path = os.environ[name]
        if not (Path(path).exists() and os.access(path, os.R_OK)):
            why = "may not be read" if Path(path).exists() else "is not there"
            yield f"{name}={path}: this file of certificates {why}; correct the path or unset {name}"


def _addresses(hub: bool) -> Iterator[str]:
    """Addresses that cannot be one; their values may hold a password and are not told."""
    endpoint = os.environ.get("HF_ENDPOINT")
    if hub and endpoint and not _is_address(endpoint, ("http", "https")):
        yield "HF_ENDPOINT is no address; expected one such as https://huggingface.co, with https:// in front"
    for name in PROXIES:
        proxy = os.environ.get(name)
        if proxy and not _is_address(proxy if "://" in proxy else f"http://{proxy}", PROXY_SCHEMES):
            yield f"{name} is no address of a proxy; expected one such as http://proxy.example:8080, its port a number"


def _is_address(text: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(text.strip())
        return parts.scheme.lower() in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half a bracket
        return False


@contextlib.contextmanager
def told_by_name(address: str) -> Iterator[None]:
    """Turn what a library raises outside its own error class, before or while it connects, into one line.

    Errors of a disk that takes no files pass, since others tell them better.

    Args:
        address: what was to be downloaded.

    Raises:
        PekaError: with the variables of the network that are set, which are the likely cause.
    """
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        if getattr(error, "errno", None) in CANNOT_WRITE:
            raise
        names = ("HF_TOKEN", "HF_ENDPOINT", *HUB_CERTIFICATES, *WEB_CERTIFICATES, *PROXIES)
        here = [name for name in names if os.environ.get(name)]
        look = (
            f"these variables are set and may be the cause: {', '.join(here)}"
            if here
            else "no variable of the network is set"
        )
        raise PekaError(
            f"{address}: no download was possible ({told(error)}); {look}. Correct it, then run the same command again."
        ) from error


def told(error: Exception) -> str:
    """Kind and first line of an error of another library, without any token of this machine."""
    text = (str(error).splitlines() or [""])[0]
    for secret in (os.environ.get("HF_TOKEN", "").strip(), *_passwords()):
        text = text.replace(secret, "…") if secret else text
    return f"{type(error).__name__}: {text[:120]}"


def _passwords() -> Iterator[str]:
    """What stands before the `@` of a proxy's address."""
    for name in PROXIES:
        value = os.environ.get(name, "")
        if "@" in value:
            yield value.rpartition("@")[0].rpartition("//")[2]
