"""What a sandbox server counts."""

from __future__ import annotations

from lingflash.core.metrics import HttpMetrics


class SandboxMetrics(HttpMetrics):
    """Series of a sandbox server."""

    def __init__(self) -> None:
        super().__init__()
        self.created = self._counter("sandboxes_created", "Sandboxes by where from", "source")
        self.ended = self._counter("sandboxes_ended", "Sandboxes by why", "reason")
        self.seconds = self._counter("sandbox_seconds", "Seconds that sandboxes were given out")
        self.cpu_s = self._counter("sandbox_cpu_seconds", "CPU seconds of sandboxes, by cgroup")
        self.output = self._counter("sandbox_output_bytes", "Bytes that came out of sandboxes")
        self.refused = self._counter(
            "sandboxes_refused", "Sandboxes not made or resumed by the limit of their key", "limit"
        )
        self.stopped = self._counter(
            "sandboxes_paused_by_limit", "Sandboxes paused by the limit of their key", "limit"
        )
        self.state = self._gauge("sandboxes_running", "Sandboxes that are given out and run")
        self.paused = self._gauge("sandboxes_paused", "Sandboxes that are paused")
        self.warm = self._gauge("sandboxes_warm", "Sandboxes that wait")
        self.start_s = self._histogram(
            "sandbox_start_seconds", "To have a sandbox ready", (0.01, 0.025, 0.05, 0.1, 0.5, 1, 5)
        )
