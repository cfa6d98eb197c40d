"""One `/v1` address in front of all the model servers of a machine, run as systemd units."""

from llamaswapd import compiled

__version__ = "0.1.0"

compiled.prepare()
