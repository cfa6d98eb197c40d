"""What a client is told when its model fails once the request has been sent."""

from __future__ import annotations

from llamaswapd.engine import Lease
from llamaswapd.errors import UpstreamError
from llamaswapd.http.upstream import NotHttp


async def explained(lease: Lease, error: UpstreamError) -> UpstreamError:
    """Return the error with the model's name, and how its unit ended if that is why; may take a second to find out."""
    cause = None if isinstance(error, NotHttp) else await lease.cause()
    what = f"it ended before its answer did: {cause}" if cause else str(error)
    failure = UpstreamError(f'model "{lease.model.id}": {what}')
    failure.__cause__ = error
    return failure
