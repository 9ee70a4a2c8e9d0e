"""Which network interface the workers of a training listen on.

Gloo, which joins workers without GPUs, takes the interface of the host's name. Where that is the
loopback, as Debian writes it into ``/etc/hosts``, other hosts cannot reach it. They can reach the
address that Ray knows the node by.
"""

import fcntl
import os
import socket
import struct
from contextlib import suppress
from typing import Any

import ray
from ray.train.torch import TorchConfig

_SIOCGIFADDR = 0x8915  # Linux: asks for the IPv4 address of an interface

RayTorchBackend: Any = TorchConfig().backend_cls


class ReachableBackend(RayTorchBackend):  # type: ignore[misc]
    """Ray Train's torch backend, of workers that listen where Ray reaches their node."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Tell every worker before it joins the others."""
        worker_group.execute(_listen_where_ray_does)
        super().on_start(worker_group, backend_config)


class ReachableTorchConfig(TorchConfig):
    """Chooses :class:`ReachableBackend`; an interface in ``GLOO_SOCKET_IFNAME`` stays."""

    @property
    def backend_cls(self) -> type[ReachableBackend]:
        """The backend's class."""
        return ReachableBackend


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has an IPv4 address; None where none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no address
                asked = struct.pack("256s", name.encode())
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, asked)
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def _listen_where_ray_does() -> None:
    if interface := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
