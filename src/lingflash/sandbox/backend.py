"""Where sandboxes come from: what the server asks of it, beside the routes that each has."""

from __future__ import annotations

from typing import Protocol

from lingflash.httpd.server import Service


class Backend(Service, Protocol):
    """Jails on this machine (`manager.py`), or sandboxes elsewhere (`remote.py`)."""

    is_ready: bool
