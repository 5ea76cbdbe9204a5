"""HTTP connections of the trainer: proxies and certificates of the environment, bounded retries, timeouts."""

import contextlib
import os
import ssl
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import certifi
import urllib3

ATTEMPTS = 4
"""How often a request is tried; the pauses between double, from about a second on."""
LONGEST_PAUSE_S = 60
"""A server that asks for more (`Retry-After`) is left to the Job's own retries."""
CONNECT_S, READ_S = 10.0, 60.0
"""How long a connection, and each silence of a server, may take."""
RETRIED = (429, 500, 502, 503, 504)
Cause = TypeVar("Cause", bound=BaseException)
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_UNKNOWN_AUTHORITY = (
    "have the chart's config.caBundleConfigMap name a bundle that holds its authority; without a cluster set "
    "SSL_CERT_FILE to one (for S3 AWS_CA_BUNDLE goes before it)"
)
_OUT_OF_TIME = "have it renewed, or the node's clock set"
_OTHER_NAME = "use a name that it is for, or have one made for this name"
_REMEDIES = {9: _OUT_OF_TIME, 10: _OUT_OF_TIME, 62: _OTHER_NAME, 64: _OTHER_NAME}
"""By OpenSSL's code where no bundle would help: not yet valid, expired, of another host name or IP address."""


def http_pool(url: str, *, backoff_s: float = 0.5, ca_variable: str | None = None) -> urllib3.PoolManager:
    """Connections to the server of `url`. A request that keeps failing raises urllib3's errors or gives its status.

    `ca_variable` names a bundle of certificates before those that every client of the machine uses.
    """
    retries = urllib3.Retry(
        total=ATTEMPTS - 1,
        status_forcelist=RETRIED,
        allowed_methods=None,
        backoff_factor=backoff_s,
        backoff_jitter=backoff_s,
        raise_on_status=False,
        retry_after_max=LONGEST_PAUSE_S,
    )
    timeout = urllib3.Timeout(connect=CONNECT_S, read=READ_S)
    variables = _CA_VARIABLES if ca_variable is None else (ca_variable, *_CA_VARIABLES)
    bundle = next((os.environ[name] for name in variables if os.environ.get(name)), certifi.where())
    proxy = _proxy(url)
    if proxy is None:
        return urllib3.PoolManager(retries=retries, timeout=timeout, ca_certs=bundle, maxsize=8)
    return urllib3.ProxyManager(
        proxy, proxy_headers=proxy_login(proxy), retries=retries, timeout=timeout, ca_certs=bundle, maxsize=8
    )


def is_own(url: str, root: str) -> bool:
    """Whether an address that a server gave is on this very server, and not without the TLS that `root` has: no others
    may see credentials."""
    there, here = urlsplit(url), urlsplit(root)
    return there.netloc == here.netloc and there.scheme in {here.scheme, "https"}


def proxy_login(proxy: str) -> dict[str, str]:
    """The header with the user and the password of a proxy's address, of which urllib3 makes nothing; empty where it
    has none, and for SOCKS. Raises urllib3's `LocationParseError`, which may show them."""
    parts = urllib3.util.parse_url(proxy)
    if not parts.auth or (parts.scheme or "").startswith("socks"):
        return {}
    # The very bytes of the address: what is not ASCII stands there in UTF-8.
    return urllib3.util.make_headers(proxy_basic_auth=unquote(parts.auth, "latin-1"))


def refused_certificate(error: BaseException, remedy: str = _UNKNOWN_AUTHORITY) -> str | None:
    """Why the certificate of a server was refused and what to do, as the end of a sentence; None where an error has
    another cause. `remedy` is for an authority that is not known."""
    found = cause_of(error, ssl.SSLCertVerificationError)
    if found is None:
        return None
    why = str(getattr(found, "verify_message", "")).rstrip(".") or "its authority is not known"
    remedy = _REMEDIES.get(getattr(found, "verify_code", 0), remedy)
    return f"the server's certificate is not trusted ({why}): {remedy}"


def cause_of(error: BaseException, *kinds: type[Cause]) -> Cause | None:
    """The first of these kinds behind an error, itself included; None where there is none.

    Clients raise errors of their own, with the cause chained to them; urllib3's have it in `reason` or `args`.
    """
    seen: set[int] = set()
    nested: list[object] = [error]
    while nested:
        item = nested.pop(0)
        if isinstance(item, kinds):
            return item
        if isinstance(item, BaseException) and id(item) not in seen:
            seen.add(id(item))
            nested += [item.__cause__, item.__context__, getattr(item, "reason", None), *item.args]
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file that is read in parts: its whole size, None where the server does not say, and `read`, which takes the
    first byte and how many."""

    size_bytes: int | None
    read: Callable[[int, int], bytes]


def read_part(request: Callable[[], urllib3.BaseHTTPResponse], start: int, count: int) -> bytes:
    """Some bytes of a file, which `request` asks for; of a server that sends the whole file instead no more is taken.

    An answer that is cut off is asked for again. Raises what `request` raises, and urllib3's errors.
    """
    for attempt in range(1, ATTEMPTS + 1):
        with contextlib.closing(request()) as response:
            try:
                before = start if response.status == 200 else 0
                return response.read(before + count)[before:]
            except urllib3.exceptions.ProtocolError:
                if attempt == ATTEMPTS:
                    raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _proxy(url: str) -> str | None:
    """The proxy that `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` name for an address."""
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc):
        return None
    return urllib.request.getproxies().get(parts.scheme)
