"""How the daemon itself is: what an operator should see at a glance, in `systemctl status` and at `/health?verbose`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Condition:
    """What is wrong at the moment, each as a sentence, "" where all is well. The daemon tells it."""

    config_error: str = ""  # the last reload failed; the configuration before it is in use
    config_summary: str = ""  # the same for everybody: it quotes nothing of what is wrong, which may be a secret
    bus_error: str = ""  # systemd cannot be reached: models that run are served, none can be started
    state_error: str = ""  # what must outlast the daemon cannot be written
    is_draining: bool = False  # stopping: no new connections

    @property
    def troubles(self) -> list[str]:
        return [text for text in (self.config_error, self.bus_error, self.state_error) if text]

    def status_line(self, ready: int, loading: int, queued: int) -> str:
        """Return the line for `systemctl status`, for all to read: `2 ready, 1 loading, 3 queued`, what is wrong."""
        counts = ", ".join(f"{n} {what}" for n, what in ((ready, "ready"), (loading, "loading"), (queued, "queued")))
        stopping = ["stopping, waiting for requests in flight"] if self.is_draining else []
        troubles = [text for text in (self.config_summary, self.bus_error, self.state_error) if text]
        return "; ".join([*stopping, counts, *(text.partition("\n")[0] for text in troubles)])
