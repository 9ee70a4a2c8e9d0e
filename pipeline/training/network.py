"""Process group of the training workers, and the addresses at which it listens.

The group listens at the node's address in Ray only: the loopback's for a private Ray, and an
address that all hosts reach on a cluster. Left to themselves, torch's store listens on all
interfaces, and Gloo, which connects workers without GPUs, uses the interface of the host name,
which may be the loopback's where other hosts have to connect (Debian's ``/etc/hosts``).
"""

import fcntl
import os
import socket
import struct
from contextlib import suppress
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # of its C++ part

_SIOCGIFADDR = 0x8915  # Linux: get the IPv4 address of an interface

RayTorchBackend: Any = TorchConfig().backend_cls
_stores: list[TCPStore] = []  # of this process; the group of rank 0 depends on its store


class NodeBackend(RayTorchBackend):  # type: ignore[misc]
    """Ray Train's torch backend; its process group listens at the node's address only."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Create the process group on every worker."""
        uses_gpu = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        backend = backend_config.backend or ("nccl" if uses_gpu else "gloo")
        timeout = timedelta(seconds=backend_config.timeout_s)
        host, port = worker_group.execute_single(0, _open_store, timeout)
        size = len(worker_group)
        joined = [
            worker_group.execute_single_async(
                worker, _join, backend, host, port, worker, size, timeout
            )
            for worker in range(size)
        ]
        ray.get(joined)


class NodeTorchConfig(TorchConfig):
    """Selects :class:`NodeBackend`; an interface in ``GLOO_SOCKET_IFNAME`` is kept."""

    @property
    def backend_cls(self) -> type[NodeBackend]:
        """Class of the backend."""
        return NodeBackend


def open_store(host: str, timeout: timedelta = timedelta(minutes=5)) -> TCPStore:
    """Return the store of a process group, listening at a free port of one address."""
    family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
    with socket.socket(family) as bound:
        bound.bind((host, 0))
        return TCPStore(
            host,
            bound.getsockname()[1],
            is_master=True,
            timeout=timeout,
            wait_for_workers=False,
            master_listen_fd=bound.detach(),
        )


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


def _open_store(timeout: timedelta) -> tuple[str, int]:
    store = open_store(ray.util.get_node_ip_address(), timeout)
    _stores.append(store)
    return store.host, store.port


def _join(backend: str, host: str, port: int, rank: int, size: int, timeout: timedelta) -> None:
    if interface := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        if interface == "lo":  # NCCL avoids the loopback by itself; on a cluster NCCL chooses
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    store = _stores[-1] if rank == 0 else TCPStore(host, port, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
