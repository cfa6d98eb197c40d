"""The daemon that the cases share; see `live.py`."""

from tests.contract.live import folder as folder
from tests.contract.live import house as house
from tests.contract.live import live as live
