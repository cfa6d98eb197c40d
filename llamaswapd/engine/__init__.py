"""Runs models on demand: what should run is decided in `core`, how it is made to happen is a `Backend`'s business."""

from llamaswapd.core.naming import Resolved
from llamaswapd.engine.backend import Backend, EngineObserver, Found, Resources, Unit
from llamaswapd.engine.engine import Engine, Status
from llamaswapd.engine.lease import Lease

__all__ = ["Backend", "Engine", "EngineObserver", "Found", "Lease", "Resolved", "Resources", "Status", "Unit"]
