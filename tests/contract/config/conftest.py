"""The daemon that the cases share; see `live.py`."""

from live import folder as folder
from live import house as house
from live import live as live
