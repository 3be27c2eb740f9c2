"""The directory of `ling cluster`, which places replicas by Ray and knows of each."""

from __future__ import annotations

from lingflash.core.errors import ConfigError
from lingflash.gateway.directory.directory import DirectoryError
from lingflash.link.http_client import Address, BadAnswer, Deadlines, open_request
from lingflash.protocol.replicas import DIRECTORY_PATH, Replica, read_listing

_DEADLINES = Deadlines(total_s=3.0)
_MAX_SHOWN = 200


class ClusterDirectory:
    """Asks the cluster's control plane over HTTP; no request of a client passes there.

    Args:
        url: where it listens.
        token: of the cluster.
    """

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url
        self._address = Address.parse_any(url, token)

    async def replicas(self) -> list[Replica]:
        """See Directory."""
        try:
            async with open_request(
                self._address, "GET", DIRECTORY_PATH, deadlines=_DEADLINES
            ) as answer:
                body = await answer.read()
        except (OSError, BadAnswer) as error:
            raise DirectoryError(f"{self._url} gives no answer: {error}") from None
        if answer.status != 200:
            shown = body[:_MAX_SHOWN].decode("utf-8", "replace")
            raise DirectoryError(f"{self._url} answers with status {answer.status}: {shown}")
        try:
            found = read_listing(body)
            for each in found:
                Address.parse_any(each.url)
        except (ValueError, ConfigError) as error:
            raise DirectoryError(f"{self._url} is no directory of replicas: {error}") from None
        return found
