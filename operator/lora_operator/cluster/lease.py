"""Leader election by a Lease: of several operators one works, and the others stand by.

The official client has an election of its own (`kubernetes.aio.leaderelection`), which is not used, because a leader
could outlive its lease: it measures by the wall clock, which may be set, and gives a renewal no deadline, so that one
that hangs is waited for longer than the lease lasts. It also lets a refused connection end the election, never
releases a lease, and goes on renewing it when the work has ended. The rules here are those of Kubernetes' own
components: a candidate trusts no time that another wrote, but measures for how long it has seen the Lease unchanged.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from lora_operator.cluster.api import LEASES, Api, ApiError, Object, UnreachableError
from lora_operator.model.wording import sentence

logger = logging.getLogger(__name__)

RELEASE_S = 8.0
"""Short of the 15 s after which a Lease that nobody gave back runs out, by default."""
_JITTER = 0.2


class LeaseLostError(Exception):
    """The lease is another's, or may be soon: whoever led must stop. The text is one sentence."""


class Election:
    """One candidate. It leads from the return of `acquire` until `keep` raises; `release` hands over at once.

    `duration_s` is for how long a Lease that is not renewed keeps others away, `renew_deadline_s`, which is shorter,
    after how long without a renewal its holder stops, and `retry_s` the time between two requests.
    """

    def __init__(
        self,
        api: Api,
        *,
        namespace: str,
        name: str,
        identity: str,
        duration_s: int,
        renew_deadline_s: float,
        retry_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        random: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._api = api
        self.namespace = namespace
        self.name = name
        self._identity = identity
        self._duration_s = duration_s
        self._renew_deadline_s = renew_deadline_s
        self._retry_s = retry_s
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._now = now
        self._lease: Object = {}
        self._seen_s = clock()
        self._renewed_s: float | None = None
        self._reported = ""

    @property
    def leading(self) -> bool:
        """Whether the lease is this candidate's and was renewed lately enough."""
        return self._renewed_s is not None and self._clock() - self._renewed_s < self._renew_deadline_s

    async def acquire(self) -> None:
        """Wait until the lease is this candidate's, however long that takes."""
        reported = ""
        while not await self._attempt():
            holder = self._holder
            if holder not in ("", reported):
                logger.info("standing by: %s holds the Lease %s", holder, self._place)
                reported = holder
            pause_s = self._retry_s * (1 + _JITTER * self._random())
            await self._sleep(max(0.0, min(pause_s, self._left_s() or pause_s)))
        logger.info("leading: %s holds the Lease %s", self._identity, self._place)

    async def keep(self) -> None:
        """Renew the lease forever. Raises `LeaseLostError` where another holds it, or no renewal came in time."""
        while True:
            await self._sleep(self._retry_s)
            left_s = (self._renewed_s or 0.0) + self._renew_deadline_s - self._clock()
            try:
                async with asyncio.timeout(max(0.0, left_s)):
                    await self._renew()
            except TimeoutError as error:
                self._renewed_s = None
                why = f"The Lease {self._place} could not be renewed for {self._renew_deadline_s:g} s"
                raise LeaseLostError(why) from error

    async def release(self) -> None:
        """Give the lease back, if it is held, so that another need not wait for its end; best effort."""
        if self._renewed_s is None:
            return
        self._renewed_s = None
        try:
            async with asyncio.timeout(RELEASE_S):
                # A renewal that was cut off may have been stored all the same.
                await self._look()
                if self._holder != self._identity:
                    return
                free = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": self._instant()}
                await self._replace({**_spec(self._lease), **free})
        except (ApiError, UnreachableError, TimeoutError) as error:
            logger.warning("the Lease %s was not released: %s", self._place, sentence(str(error)))
        else:
            logger.info("released the Lease %s", self._place)

    async def _renew(self) -> None:
        while not await self._attempt():
            if self._holder not in ("", self._identity):
                self._renewed_s = None
                raise LeaseLostError(f"The Lease {self._place} is held by {self._holder} now")
            await self._sleep(self._retry_s)
            if not self.leading:
                raise TimeoutError

    async def _attempt(self) -> bool:
        """Take or renew the lease; whether it is held now. An API server in trouble is no answer."""
        began_s = self._clock()
        try:
            # The holder's own copy is good until somebody else writes, and that is a conflict.
            if not self.leading:
                await self._look()
            if self._left_s():
                return False
            await self._write()
        except ApiError as error:
            if error.code in (404, 409):
                await self._look_after_conflict()
            else:
                self._report(error)
            return False
        except UnreachableError as error:
            self._report(error)
            return False
        self._renewed_s, self._reported = began_s, ""
        return True

    async def _look(self) -> None:
        """Read the Lease, and note when it was first seen as it is."""
        try:
            lease = await self._api.get(LEASES, self.namespace, self.name)
        except ApiError as error:
            if error.code != 404:
                raise
            lease = {}
        if _spec(lease) != _spec(self._lease):
            self._seen_s = self._clock()
        self._lease = lease

    async def _look_after_conflict(self) -> None:
        try:
            await self._look()
        except (ApiError, UnreachableError) as error:
            self._report(error)

    def _report(self, error: Exception) -> None:
        """Say what is wrong, and not again while it stays the same."""
        text = sentence(str(error))
        if text != self._reported:
            logger.warning("the Lease %s is not available: %s", self._place, text)
            self._reported = text

    def _left_s(self) -> float:
        """For how long another's hold must be respected; 0 where the lease is free, ours or has run out."""
        if self._holder in ("", self._identity):
            return 0.0
        declared = _spec(self._lease).get("leaseDurationSeconds")
        duration_s = declared if isinstance(declared, int) and declared > 0 else self._duration_s
        return max(0.0, self._seen_s + duration_s - self._clock())

    async def _write(self) -> None:
        before = _spec(self._lease)
        ours = self._holder == self._identity
        instant = self._instant()
        spec = {
            **before,
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._duration_s,
            "acquireTime": before.get("acquireTime") if ours else instant,
            "renewTime": instant,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (0 if ours or not before else 1),
        }
        if self._lease:
            await self._replace(spec)
        else:
            manifest = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": {"name": self.name}}
            self._lease = await self._api.create(LEASES, self.namespace, {**manifest, "spec": spec})

    async def _replace(self, spec: dict[str, Any]) -> None:
        """Guarded by the resource version: a 409 where somebody wrote in between."""
        path = LEASES.path(self.namespace, self.name)
        self._lease = await self._api.request("PUT", path, body={**self._lease, "spec": spec})

    @property
    def _holder(self) -> str:
        return str(_spec(self._lease).get("holderIdentity") or "")

    @property
    def _place(self) -> str:
        return f"{self.namespace}/{self.name}"

    def _instant(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _spec(lease: Object) -> dict[str, Any]:
    spec = lease.get("spec")
    return spec if isinstance(spec, dict) else {}
