"""Fetching a picture or a recording from the network, no more of it than is asked for."""

from __future__ import annotations

from typing import IO, Any

from isoform.errors import InputError

ADDRESSES = ("http://", "https://")
TIMEOUT = 30.0  # seconds without a byte
_PIECE = 2**20


def fetch(address: str, into: IO[bytes], limit: int, timeout: float | None = None) -> None:
    """Write what lies behind an address to a stream, and wind it back.

    Raises InputError when it cannot be fetched, leads away from the web, or has more than `limit` bytes.
    """
    from http.client import HTTPException
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class WebOnly(HTTPRedirectHandler):
        def redirect_request(self, *arguments: Any) -> Request | None:
            target = arguments[-1]
            if not target.startswith(ADDRESSES):
                raise InputError(f"{address} leads to {target:.80}, which is no http address")
            return super().redirect_request(*arguments)

    seconds, size = TIMEOUT if timeout is None else timeout, 0
    try:
        request = Request(address, headers={"User-Agent": "isoform"})
        with build_opener(WebOnly).open(request, timeout=seconds) as answer:
            while piece := answer.read(_PIECE):
                size += len(piece)
                if size > limit:
                    raise InputError(
                        f"{address} is larger than {limit // 2**20} MiB; fetch it yourself and give the file"
                    )
                into.write(piece)
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(f"{address} cannot be fetched ({error or type(error).__name__})") from None
    into.seek(0)
