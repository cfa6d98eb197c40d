"""How an operator gets inside a private manager, whose units and journal the machine's own tools do not see."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from llamaswapd.errors import UsageError
from llamaswapd.systemd.private_init import own_unit


def inside(runtime_dir: Path, command: Sequence[str]) -> list[str]:
    """Return the command line that runs `command` in the namespaces of the private manager of a daemon.

    `runtime_dir` is the daemon's. There, `systemctl --user` and `journalctl` speak of that manager. Raises UsageError
    when no daemon runs with it.
    """
    uid = os.getuid()
    try:
        cgroup = Path((runtime_dir / "private" / "cgroup").read_text())
        procs = cgroup / own_unit() / "init.scope" / "cgroup.procs"  # where systemd itself runs
        pid = procs.read_text().split()[0]
    except (OSError, IndexError):
        raise UsageError(
            f"no private manager runs for {runtime_dir}; is the daemon up, and of the same -instance?"
        ) from None
    nsenter = shutil.which("nsenter")
    if nsenter is None:
        raise UsageError("nsenter is not installed; install util-linux")
    runtime = f"/run/user/{uid}"
    bus = f"DBUS_SESSION_BUS_ADDRESS=unix:path={runtime}/bus"
    enter = [nsenter, "--target", pid, "--mount", "--cgroup", "--wd"]
    return [*enter, "--", "env", f"XDG_RUNTIME_DIR={runtime}", bus, *command]
