"""Who may ask for what: tokens with roles, or everybody on this machine alone.

Without tokens the station is open to this machine: then only requests to a name of it are answered, so that
no page from elsewhere reaches it by a name of its own (DNS rebinding), and what changes anything needs a
header that such a page cannot send.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

from ...errors import ConfigError
from ..history.audit import Person
from .errors import Denied

Role = Literal["inspect", "teach", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
HEADER = "x-moleflow"
SAFE = ("GET", "HEAD", "OPTIONS")
SHORTEST = 20  # characters of a token
FINGERPRINT = 8  # characters of a token's hash that stand in the audit log
TRIES, PER_SECONDS = 10, 60.0  # bad tokens from an address, before it has to wait
ADDRESSES = 4096  # that are remembered


@dataclass(frozen=True)
class Token:
    """What is known of one: its role, and the hash by which it is recognised."""

    role: Role
    digest: bytes

    @property
    def fingerprint(self) -> str:
        """By which the audit log tells it from others."""
        return self.digest.hex()[:FINGERPRINT]


def new_token(role: str) -> str:
    """A line for a file of tokens; ConfigError for another role."""
    return f"{_role(role)}:{secrets.token_urlsafe(32)}"


def read_tokens(lines: Iterable[str]) -> tuple[Token, ...]:
    """Tokens, one `role:token` a line; blank lines and those that begin with `#` are skipped.

    Raises:
        ConfigError: a line of another form, which is named by its number alone: it may be a secret.
    """
    found = []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        role, _, secret = line.partition(":")
        if not secret:
            raise ConfigError(f"line {number} of the tokens: expected role:token")
        if len(secret) < SHORTEST:
            raise ConfigError(f"line {number} of the tokens: expected at least {SHORTEST} characters")
        found.append(Token(_role(role, f"line {number} of the tokens: "), _digest(secret)))
    return tuple(found)


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is reached from this machine alone."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@dataclass(eq=False)
class Access:
    """Of one station.

    Attributes:
        tokens: without any, everybody who reaches the station is an administrator.
    """

    tokens: tuple[Token, ...] = ()
    brake: Brake = field(default_factory=lambda: Brake())

    @property
    def open(self) -> bool:
        """Whether nobody needs a token."""
        return not self.tokens

    def check_host(self, host: str) -> None:
        """Denied where an open station is asked by another name than this machine's."""
        if self.open and not is_loopback(_without_port(host)):
            raise Denied(403, "foreign_host", "an open station answers to localhost and 127.0.0.1 alone")

    def check_origin(self, method: str, *, marked: bool, origin: str | None, host: str) -> None:
        """Denied where a page from elsewhere may have sent what changes something."""
        if method in SAFE or not self.open:
            return
        if not marked:
            raise Denied(403, "missing_header", "what changes anything needs the header X-Moleflow: 1")
        if origin not in (None, f"http://{host}", f"https://{host}"):
            raise Denied(403, "foreign_origin", "this came from a page of another address")

    def who(self, authorization: str | None, address: str) -> Person:
        """Whoever asks; Denied where the token is missing or wrong."""
        if self.open:
            return Person("admin", address=address)
        if authorization is None:
            raise Denied(401, "no_token", "expected the header Authorization: Bearer TOKEN")
        self.brake.check(address)
        kind, _, secret = authorization.partition(" ")
        token = self._known(secret.strip()) if kind.lower() == "bearer" else None
        if token is None:
            self.brake.failed(address)
            raise Denied(401, "bad_token", "this token is not known")
        return Person(token.role, token.fingerprint, address)

    def _known(self, secret: str) -> Token | None:
        """All are compared, so that the time it takes tells nothing."""
        digest, found = _digest(secret), None
        for token in self.tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found


def require(person: Person, role: Role) -> Person:
    """Denied where somebody may not do what this role may."""
    if ROLES.index(person.role) < ROLES.index(role):
        raise Denied(403, "forbidden", f"this needs the role {role}, the token has {person.role}")
    return person


class Brake:
    """Whoever sends many bad tokens has to wait, also with a good one: guesses must not be told from it."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._guard = threading.Lock()

    def check(self, address: str) -> None:
        """Denied while an address has to wait."""
        with self._guard:
            times = self._failures.get(address)
            if times and len(times) == TRIES and time.monotonic() - times[0] < PER_SECONDS:
                raise Denied(
                    429, "too_many_tries", "too many bad tokens came from this address; wait a minute"
                )

    def failed(self, address: str) -> None:
        """One more bad token."""
        with self._guard:
            times = self._failures.setdefault(address, deque(maxlen=TRIES))
            times.append(time.monotonic())
            self._failures.move_to_end(address)
            while len(self._failures) > ADDRESSES:
                self._failures.popitem(last=False)


def _role(role: str, where: str = "") -> Role:
    for known in ROLES:
        if role.strip() == known:
            return known
    got = "" if where else f", got {role!r}"  # what stands in a file may be a secret
    raise ConfigError(f"{where}expected a role among {', '.join(ROLES)}{got}")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0][1:]
    return host.partition(":")[0] if host.count(":") <= 1 else host
