"""The addresses and network interfaces of this machine."""

import socket

import psutil


def own_address() -> str:
    """Return this machine's address in the network of its default route, else in another network, else loopback.

    Not the one that its name leads to, which on Debian and Ubuntu is 127.0.1.1.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("8.8.8.8", 53))  # sends nothing
            return probe.getsockname()[0]
        except OSError:
            pass
    is_up = {name: status.isup for name, status in psutil.net_if_stats().items()}
    for name, addresses in psutil.net_if_addrs().items():
        for each in addresses:
            if each.family == socket.AF_INET and not each.address.startswith("127.") and is_up.get(name):
                return each.address
    return "127.0.0.1"


def interface(address: str) -> str | None:
    """Return the name of this machine's network interface with an address, or None."""
    for name, addresses in psutil.net_if_addrs().items():
        if address in [each.address for each in addresses]:
            return name
    return None
