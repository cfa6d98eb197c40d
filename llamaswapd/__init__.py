"""One `/v1` address in front of all the model servers of a machine, run as systemd units."""

__version__ = "0.1.0"
