"""A directory that is a host name: every address that it stands for is a replica."""

from __future__ import annotations

import asyncio
import socket

from lingflash.gateway.directory.directory import DirectoryError
from lingflash.gateway.directory.static import StaticDirectory
from lingflash.protocol.replicas import Replica

_TIMEOUT_S = 5.0


class DnsDirectory:
    """Servers behind a name, such as a headless service of Kubernetes; each is asked if it serves.

    Args:
        port: that all of them listen on.
        token: as of StaticDirectory.
    """

    def __init__(self, host: str, port: int, token: str | None = None) -> None:
        self._host = host
        self._port = port
        self._token = token

    async def replicas(self) -> list[Replica]:
        """See Directory. A name that has no address any more stands for no replicas."""
        loop = asyncio.get_running_loop()
        looking = loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.wait_for(looking, _TIMEOUT_S)
        except socket.gaierror as error:
            if error.errno in _NOBODY:
                return []
            raise DirectoryError(f"{self._host} cannot be looked up: {error.strerror}") from None
        except (TimeoutError, OSError, UnicodeError) as error:
            why = str(error) or f"no answer in {_TIMEOUT_S:g} s"
            raise DirectoryError(f"{self._host} cannot be looked up: {why}") from None
        hosts = dict.fromkeys(str(address[0]) for *_, address in found)
        urls = [_url(host, self._port) for host in hosts]
        return await StaticDirectory(urls, self._token).replicas()


# A headless service without pods has no records; a resolver that fails says something else.
_NOBODY = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
