"""What a chat client is shown while its model loads: progress, as the reasoning of an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llamaswapd.engine import Lease

TICK_S = 0.75  # intermediaries must see some bytes at least every second or so

RULE = "━━━━━"


async def show_loading(lease: Lease, send_event: Callable[[object], None]) -> None:
    """Send progress until the lease is granted; raises what `Lease.granted` does."""
    loop = asyncio.get_running_loop()
    began = loop.time()
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
            send_event(_reasoning("."))
    send_event(_reasoning(f"\nDone! ({loop.time() - began:.2f}s)\n{RULE}\n\n"))


def _reasoning(text: str) -> object:
    return {"choices": [{"delta": {"reasoning_content": text}}]}
