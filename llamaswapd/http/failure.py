"""What a client is told when its model, or a peer, fails once the request has been sent."""

from __future__ import annotations

from llamaswapd.config.schema import ModelConfig, PeerModel
from llamaswapd.engine import Lease
from llamaswapd.errors import Cancelled, UpstreamError
from llamaswapd.http.upstream import NotHttp


class CutOff(UpstreamError):
    """The daemon stops before the answer has ended; it, or its successor, can be asked again in a moment."""

    status = 503
    retry_after_s = 1


async def explained(lease: Lease | None, target: ModelConfig | PeerModel, error: UpstreamError) -> UpstreamError:
    """Return the error with what failed, and how a model's unit ended if that is why; may take a second to find out."""
    if isinstance(error, Cancelled):
        return error
    if isinstance(target, PeerModel):
        failure = UpstreamError(f'peer proxy error: peer "{target.peer.id}": {error}')
    else:
        cause = None if lease is None or isinstance(error, NotHttp) else await lease.cause()
        what = f"it ended before its answer did: {cause}" if cause else str(error)
        failure = UpstreamError(f'model "{target.id}": {what}')
    failure.__cause__ = error
    return failure
