"""Runs the programs of others that know the machine, such as nvidia-smi: one at a time, and bounded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Iterable

log = logging.getLogger(__name__)

# Where vendors put their tools beside $PATH: ROCm's packages, and the tools that Windows lends to WSL.
MORE_FOLDERS = ("/opt/rocm/bin", "/usr/lib/wsl/lib")

REAP_WITHIN_S = 1.0  # a killed process is gone in milliseconds, unless it hangs in a driver


class Tool:
    """A program that may be installed. It can hang for as long as the driver that it asks."""

    def __init__(self, name: str, search: str | None = None) -> None:
        """`search`: folders in the form of $PATH, by default that and MORE_FOLDERS."""
        self.name = name
        self._search = search
        self._stuck: asyncio.subprocess.Process | None = None

    def find(self) -> str | None:
        """Return the program's path if it is installed."""
        search = self._search
        if search is None:
            search = os.pathsep.join((os.environ.get("PATH", os.defpath), *MORE_FOLDERS))
        return shutil.which(self.name, path=search)

    async def output(self, *args: str, within_s: float) -> str:
        """Return what it prints, whatever its exit status; "" if it cannot be run or takes longer than `within_s`.

        A run that takes longer is killed. While one cannot even be killed, no other is started.
        """
        path = self.find()
        if path is None or (self._stuck is not None and self._stuck.returncode is None):
            return ""
        # A start that is cancelled half-way leaves a process that nobody knows, at least with uvloop.
        started = asyncio.create_task(start(path, args), name=f"start of {self.name}")
        try:
            process = await asyncio.shield(started)
        except OSError as error:
            log.debug("cannot run %s: %s", path, error)
            return ""
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                await self._kill(await started)
            raise
        try:
            async with asyncio.timeout(within_s):
                printed, _ = await process.communicate()
                return printed.decode(errors="replace")
        except TimeoutError:
            log.warning("%s has not answered within %g s", path, within_s)
            return ""
        finally:
            if process.returncode is None:
                await self._kill(process)

    async def _kill(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it has started itself: rocm-smi is a script
        # Until the pipe has ended, too: it would be left open.
        reaped = asyncio.create_task(process.communicate(), name=f"end of {self.name}")
        await asyncio.wait((reaped,), timeout=REAP_WITHIN_S)
        if not reaped.done():
            self._stuck = process
            reaped.cancel()
            await asyncio.wait((reaped,))


async def start(path: str, args: Iterable[str]) -> asyncio.subprocess.Process:
    """Start a program in a session of its own, to read what it prints."""
    devnull, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    env = {**os.environ, "LC_ALL": "C"}
    return await asyncio.create_subprocess_exec(
        path, *args, stdin=devnull, stdout=pipe, stderr=devnull, env=env, start_new_session=True
    )
