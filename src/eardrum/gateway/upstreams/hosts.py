"""From which hosts the server fetches what clients name. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self

IP = IPv4Address | IPv6Address

TRANSLATED = ip_network("64:ff9b::/96")
"""IPv6 addresses behind which a gateway reaches IPv4."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """Names, and addresses that may be connected to although they are not public."""

    names: frozenset[str]
    """In lower case; `*.example.com` is every name below that one, `*` every name."""
    networks: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def of(cls, listed: Sequence[str]) -> Self:
        """The hosts of `limits.fetch_hosts`."""
        networks = {entry: found for entry in listed if (found := network(entry))}
        return cls(frozenset(entry.lower().rstrip(".") for entry in listed if entry not in networks), tuple(networks.values()))

    def allows(self, host: str) -> bool:
        """Whether an address may name this host. Where its name leads is for `reachable` to say."""
        if literal := address(host):
            return self.reachable(literal) and ("*" in self.names or self._listed(literal))
        host = host.lower().rstrip(".")
        above = (f"*.{rest}" for rest in _parents(host))
        return host in self.names or "*" in self.names or any(name in self.names for name in above)

    def reachable(self, ip: IP) -> bool:
        """Whether it may be connected to: it is public, or listed."""
        inner = _inner(ip)
        return (inner.is_global and not inner.is_multicast) or self._listed(ip) or self._listed(inner)

    def _listed(self, ip: IP) -> bool:
        return any(ip in net for net in self.networks)


def network(entry: str) -> IPv4Network | IPv6Network | None:
    """The network, or the one address, that an entry names; None if it is a name."""
    try:
        return ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return None


def address(host: str) -> IP | None:
    """The address a host is written as; None if it is a name."""
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


def _parents(host: str) -> list[str]:
    labels = host.split(".")
    return [".".join(labels[at:]) for at in range(1, len(labels))]


def _inner(ip: IP) -> IP:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip in TRANSLATED:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else ip)
