"""A backbone of one's own from code: trained as it is, and saved as a graph.

The code is found by :mod:`encoders.plugins`. A bundle holds the network in the form of
:mod:`encoders.backbones.exported`, so that a reader of the bundle needs no code of the user.

Shape legend: B batch, C bands, H and W pixels, F features.
"""

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encoders.backbones.exported import Exported, build_exported
from encoders.backbones.stem import Backbone
from encoders.plugins import Plugin
from storage.errors import ConfigError


class Own(Backbone):
    """A network that code of the user's makes: called with the number of bands and the options.

    Parameters
    ----------
    plugin
        The code: a class derived from ``torch.nn.Module``, or a function that returns a module.
    bands
        Band names in channel order.
    tile_px
        Side of the tiles, pixels.
    options
        Keyword arguments for the code.

    Raises
    ------
    ConfigError
        The code cannot be imported, or makes no network that ``torch.export`` and the list of
        allowed operators take.
    """

    memory_format = torch.contiguous_format  # that of the exported network

    def __init__(
        self, plugin: Plugin, bands: Sequence[str], tile_px: int, options: dict[str, Any]
    ) -> None:
        super().__init__()
        maker = plugin.load_maker()
        try:
            made = maker(len(bands), **options)
        except Exception as error:  # whatever code of others raises
            raise ConfigError(
                f"{plugin}: called with {len(bands)} bands and {options or 'no options'} it raised "
                f"{type(error).__name__}: {error}; correct the options or the code"
            ) from error
        if not isinstance(made, nn.Module):
            raise ConfigError(
                f"{plugin}: it made a {type(made).__name__}, expected a torch.nn.Module"
            )
        self.network, self.options = made, options
        self._plugin, self._bands, self._tile_px = plugin, tuple(bands), tile_px
        self.dimension = self.exported().dimension  # refuses what no bundle can hold

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return features_BF of normalised tiles."""
        y_BF: Tensor = self.network(x_BCHW)
        return y_BF.float()

    @property
    def origin(self) -> dict[str, Any]:
        """Name, options and digest of the source, for the description of an encoder."""
        return {
            "name": self._plugin.name,
            "options": self.options,
            "source_sha256": self._plugin.digest,
        }

    def exported(self) -> Exported:
        """Return the network with its present weights as a graph, on the CPU.

        Raises
        ------
        ConfigError
            ``torch.export`` or `build_exported` refuses the network.
        """
        network = copy.deepcopy(self.network).cpu().eval()
        tiles_BCHW = torch.zeros(2, len(self._bands), self._tile_px, self._tile_px)
        with tempfile.TemporaryDirectory(prefix="skysift-") as folder:
            path = Path(folder) / "network.pt2"
            try:
                program = torch.export.export(
                    network, (tiles_BCHW,), dynamic_shapes=({0: torch.export.Dim("batch")},)
                )
                torch.export.save(program, path)
            except Exception as error:  # whatever code of others, or the tracing of it, raises
                reason = str(error).strip().partition("\n")[0]
                raise ConfigError(
                    f"{self._plugin}: torch.export cannot export it "
                    f"({type(error).__name__}: {reason}); correct its forward"
                ) from error
            try:
                return build_exported(self._bands, str(path))
            except ConfigError as error:
                reason = str(error).removeprefix(f"network {path}: ")
                raise ConfigError(f"{self._plugin}: {reason}") from error
