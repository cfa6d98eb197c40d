"""What a chat client is shown while its model loads: progress, as the reasoning of an answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from llamaswapd.core.lifecycle import State
from llamaswapd.engine import Engine, Lease

TICK_S = 0.75  # intermediaries must see some bytes at least every second or so

RULE = "━━━━━"


async def show_loading(engine: Engine, lease: Lease, send_event: Callable[[object], None]) -> None:
    """Send progress until the lease is granted; raises what `Lease.granted` does."""
    began = time.monotonic()
    send_event(_reasoning(f"{RULE}\nllama-swap loading model: {lease.model.id}\n\n"))
    shown_position = None
    while not lease.is_granted:
        if lease.position is not None and lease.position != shown_position:
            shown_position = lease.position
            send_event(_reasoning(f"Queue position: #{shown_position} "))
        try:
            async with asyncio.timeout(TICK_S):
                await lease.granted()
        except TimeoutError:
            send_event(_reasoning(_progress(engine, lease.model.id)))
    send_event(_reasoning(f"\nDone! ({time.monotonic() - began:.2f}s)\n{RULE}\n\n"))


def _progress(engine: Engine, model_id: str) -> str:
    """Return a dot, or how far the load is if that can be told from earlier ones."""
    status, expected_s = engine.status(model_id), engine.expected_load_s(model_id)
    if status.state is not State.STARTING or expected_s is None:
        return "."
    loading_s = time.time() - status.since
    if loading_s >= expected_s:
        return "."  # it takes longer than usual: nobody knows
    return f" {100 * loading_s / expected_s:.0f} % (about {math.ceil(expected_s - loading_s)} s left)"


def _reasoning(text: str) -> object:
    return {"choices": [{"delta": {"reasoning_content": text}}]}
