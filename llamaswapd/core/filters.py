"""What the configuration changes in the JSON body of a request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llamaswapd.config.schema import Filters, ModelConfig, PeerModel
from llamaswapd.core import jsontext


@dataclass(frozen=True)
class Edit:
    """The changes to the bodies of requests for one name.

    `used`: the name in the body. `requested`: what it has become after profile and selector, by which `setParamsByID`
    goes. `sent`: the name that the server is to see.
    """

    filters: Filters
    used: str
    requested: str
    sent: str

    @property
    def renames(self) -> bool:
        return self.sent != self.used

    @property
    def is_needed(self) -> bool:
        """Whether `apply` could change a body, for which it needs the whole of it."""
        filters = self.filters
        return bool(
            self.renames or filters.strip_params or filters.set_params or filters.set_params_by_id.get(self.requested)
        )

    def apply(self, body: bytes) -> bytes:
        """Return the body as the server is to see it, the same object where nothing applies.

        In this order, later ones win: the name, `stripParams`, `setParams`, `setParamsByID`; the last three cannot
        touch `model`.
        """
        return b"".join(self.pieces(body))

    def pieces(self, body: bytes) -> list[jsontext.Text]:
        """Do what `apply` does, without a second copy of a long body."""
        deletes = [path for path in sorted(self.filters.strip_params) if _may_change(path)]
        sets = list(self._sets())
        return jsontext.edited(body, deletes, sets) if deletes or sets else [body]

    def _sets(self) -> Iterator[tuple[str, Any]]:
        if self.renames:
            yield "model", self.sent
        for params in (self.filters.set_params, self.filters.set_params_by_id.get(self.requested, {})):
            yield from ((path, params[path]) for path in sorted(params) if _may_change(path))


def edit_for(target: ModelConfig | PeerModel, used: str, requested: str) -> Edit:
    """Return the changes for a request that used a name, which then became `requested` and leads to `target`.

    A model of ours gets `useModelName`, else the requested name, alias or not; a peer its own name for the model.
    """
    if isinstance(target, PeerModel):
        return Edit(target.peer.filters, used, requested, target.model)
    return Edit(target.filters, used, requested, target.use_model_name or requested)


def _may_change(path: str) -> bool:
    return jsontext.split(path)[0] != "model"
