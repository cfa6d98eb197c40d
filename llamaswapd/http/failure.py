"""What a client is told when its model, or a peer, fails once the request has been sent."""

from __future__ import annotations

from llamaswapd.config.schema import ModelConfig, PeerModel
from llamaswapd.engine import Lease
from llamaswapd.errors import Cancelled, UpstreamError
from llamaswapd.http.upstream import MayBeCut, NotHttp

DEATH_WITHIN_S = 0.1  # what systemd may take to notice; so much later a client hears of the end of such a stream


class CutOff(UpstreamError):
    """The daemon stops before the answer has ended; it, or its successor, can be asked again in a moment."""

    status = 503
    retry_after_s = 1


async def explained(lease: Lease | None, target: ModelConfig | PeerModel, error: UpstreamError) -> UpstreamError | None:
    """Return the error with what failed, and how a model's unit ended if that is why; may take a second to find out.

    None if it was no error after all.
    """
    if isinstance(error, Cancelled):
        return error
    if isinstance(error, MayBeCut) and (lease is None or await lease.cause(DEATH_WITHIN_S) is None):
        return None
    if isinstance(target, PeerModel):
        failure = UpstreamError(f'peer proxy error: peer "{target.peer.id}": {error}')
    else:
        cause = None if lease is None or isinstance(error, NotHttp) else await lease.cause()
        what = f"it ended before its answer did: {cause}" if cause else str(error)
        failure = UpstreamError(f'model "{target.id}": {what}')
    failure.__cause__ = error
    return failure
