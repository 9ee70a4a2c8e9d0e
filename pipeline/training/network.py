"""Network interface of the training workers.

Gloo, which connects workers without GPUs, uses the interface of the host name. If the host name
resolves to the loopback interface, as in Debian's ``/etc/hosts``, other hosts cannot connect. The
node's address in Ray is reachable from all hosts.
"""

import fcntl
import os
import socket
import struct
from contextlib import suppress
from typing import Any

import ray
from ray.train.torch import TorchConfig

_SIOCGIFADDR = 0x8915  # Linux: get the IPv4 address of an interface

RayTorchBackend: Any = TorchConfig().backend_cls


class ReachableBackend(RayTorchBackend):  # type: ignore[misc]
    """Ray Train's torch backend with workers that listen on the interface of the node's address."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Set the interface on every worker before the process group is created."""
        worker_group.execute(_use_interface_of_node)
        super().on_start(worker_group, backend_config)


class ReachableTorchConfig(TorchConfig):
    """Selects :class:`ReachableBackend`; an interface in ``GLOO_SOCKET_IFNAME`` is kept."""

    @property
    def backend_cls(self) -> type[ReachableBackend]:
        """Class of the backend."""
        return ReachableBackend


def interface_of(address: str) -> str | None:
    """Return the name of the interface with an IPv4 address; None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                request = struct.pack("256s", name.encode())
                reply = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                if socket.inet_ntoa(reply[20:24]) == address:
                    return name
    return None


def _use_interface_of_node() -> None:
    if interface := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
