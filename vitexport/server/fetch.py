"""Fetching an image URL, only from hosts that the operator allows, and never from inside their network by accident."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import SplitResult, urlsplit

from vitexport.server.limits import Limits, RequestError

__all__ = ["fetch_image", "is_url"]

_PORTS = {"http": 80, "https": 443}


def is_url(text: str) -> bool:
    """Return whether a string of a request is meant as a URL, not as base64."""
    return text[:8].lower().startswith(("http://", "https://")) or "://" in text[:32]


def fetch_image(url: str, limits: Limits) -> bytes:
    """Fetch an image.

    The host must be on the allow-list; it is resolved once and the address that was checked is the one connected to, so
    that a second reply of the name server changes nothing. Redirects are not followed.

    Args:
        url: ``http`` or ``https``.
        limits: Allow-list, size and time.

    Raises:
        RequestError: The URL is not allowed, or what it names cannot be fetched.
    """
    parts = _allowed(url, limits)
    port = parts.port or _PORTS[parts.scheme]
    host = parts.hostname or ""
    deadline = time.monotonic() + limits.url_seconds
    try:
        address = _resolve(host, port, limits)
        connection = _Pinned(parts.scheme, host, port, address, limits.url_seconds)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"Host": parts.netloc, "Accept": "image/*"})
            response = connection.getresponse()
            if response.status != 200:
                raise _refused(f"'{host}' answered {response.status}; redirects are not followed.")
            return _read(response, limits.body_bytes, deadline)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise _refused(f"The image at '{host}' cannot be fetched: {error!r}.") from error


def _allowed(url: str, limits: Limits) -> SplitResult:
    if not limits.url_hosts:
        raise RequestError(
            400,
            "Image URLs are not accepted by this server.",
            "Send the image as base64, or start the server with --url-host HOST.",
        )
    try:
        parts = urlsplit(url)
        named = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    except ValueError as error:
        raise _refused(f"Expected a URL, found one that cannot be parsed: {error}.") from error
    if parts.scheme not in _PORTS or parts.username is not None or named not in limits.url_hosts:
        raise _refused(f"Expected an http(s) URL of {', '.join(sorted(limits.url_hosts))}, found host '{named}'.")
    if any(character <= " " or character >= "\x7f" for character in url):
        raise _refused("Expected a URL in plain ASCII, percent-encoded.")
    return parts


def _resolve(host: str, port: int, limits: Limits) -> str:
    addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    inside = [address for address in addresses if not ipaddress.ip_address(address.partition("%")[0]).is_global]
    if inside and not limits.private_urls:
        raise _refused(f"'{host}' resolves to an address that is not public.")
    return addresses[0]


def _read(response: http.client.HTTPResponse, limit: int, deadline: float) -> bytes:
    data = bytearray()
    while chunk := response.read1(65536):
        data += chunk
        if len(data) > limit:
            raise _refused(f"The image is larger than {limit:,} bytes.")
        if time.monotonic() > deadline:
            raise _refused("The image did not arrive in time.")
    return bytes(data)


def _refused(message: str) -> RequestError:
    return RequestError(400, message, "Send the image as base64 instead.")


class _Pinned(http.client.HTTPConnection):
    """A connection to a checked address, with the host's name for TLS."""

    def __init__(self, scheme: str, host: str, port: int, address: str, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._scheme = scheme
        self._address = address

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._scheme == "https":
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
