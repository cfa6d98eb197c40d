"""Rules of `profiles`."""

from __future__ import annotations

from llamaswapd.config.rules import Problems
from llamaswapd.config.schema import Config


def profiles(config: Config) -> Problems:
    for id_, profile in config.profiles.items():
        if not id_.strip():
            yield ("profiles", id_), "profiles: profile names cannot be empty"
        if not profile.pins:
            yield ("profiles", id_, "pins"), f"profiles.{id_}.pins must contain at least one entry"
        for name, target in profile.pins.items():
            if not name.strip():
                yield ("profiles", id_, "pins", name), f"profiles.{id_}.pins: pin names cannot be empty"
            elif target and config.find(target) is None and target not in config.selectors:
                what = f'profiles.{id_}.pins.{name} references unknown model "{target}"'
                yield ("profiles", id_, "pins", name), f"{what}; a pin may not lead to another pin"
