"""One domain's QEMU, kept as it is wanted: started, greeted, adopted, ended, and started again."""

import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import trio

from xencolo.drives import image_drivers
from xencolo.errors import QmpClosed, QmpError
from xencolo.plan import Launch, Machine, Phase
from xencolo.qmp import Event
from xencolod.argv import launch_in
from xencolod.config import Config
from xencolod.exhausted import is_exhausted, patiently
from xencolod.log import Logger, emit
from xencolod.nurseries import first
from xencolod.places import first_forbidden
from xencolod.process import Process, adopt, files, spawn
from xencolod.qmp import Qmp, open_qmp

#: Seconds until a QEMU that no descriptor was left for is spoken to again.
_SHORTAGE = 1.0


@dataclass
class Settings:
    """What all supervisors share; SIGHUP replaces ``config``."""

    config: Config
    xen: bool
    log: Logger


class Guard(Protocol):
    """Who has a say in a domain's QEMU, and hears it."""

    def permit(self, launch: Launch) -> bool:
        """Return whether this QEMU may be started now; :meth:`Supervisor.want` has it asked again."""

    def hear(self, event: Event) -> None:
        """Take what QEMU said over QMP."""


class Supervisor:
    """Brings a domain's QEMU to what is wanted and keeps it there.

    :ivar machine: what is.
    :ivar qmp: the greeted connection to the QEMU that runs as it is wanted, None while there is none.
    """

    def __init__(
        self, domid: int, settings: Settings, on_change: Callable[[int], None], guard: Guard
    ) -> None:
        self.domid = domid
        self.machine = Machine()
        self.qmp: Qmp | None = None
        self._guard = guard
        self._unpermitted = False
        self._renewing = False
        self._settings = settings
        self._on_change = on_change
        self._log = settings.log.bind(domid=domid)
        self._wanted: Launch | None = None
        self._changed = trio.Event()
        self._attempts = 0

    # -- what the reconciler calls ---------------------------------------------------------------

    def want(self, launch: Launch | None) -> None:
        """Say which QEMU should run; None for none. Nothing is awaited."""
        if launch == self._wanted:
            if self._unpermitted:
                self._changed.set()
            return
        self._wanted = launch
        self._attempts = 0
        self._changed.set()

    def renew(self) -> None:
        """End the QEMU that runs, and start one like it."""
        self._renewing = True
        self._changed.set()

    def retry(self) -> None:
        """Forget a failure: what it came from may have been mended where no node tells of it."""
        if self.machine.phase is Phase.FAILED:
            self.want(None)
            self._set(Phase.ABSENT)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; the QEMU goes on then. Started once it is known whether one lives."""
        process = await patiently(self._log, self._adopted)
        launch = self._take_over(process) if process else None
        task_status.started()
        if process and launch:
            await self._tend(process, launch, fresh=False)
        while True:
            await patiently(self._log, self._go_on)

    async def _adopted(self) -> Process | None:
        return adopt(files(self._settings.config, self.domid))

    async def _go_on(self) -> None:
        if self._wanted is None:
            self._set(Phase.ABSENT)
            await self._wait_changed()
        elif self.machine.phase is Phase.FAILED and self.machine.launch == self._wanted:
            await self._wait_changed()
        else:
            await self._bring_up(self._wanted)

    # -- starting --------------------------------------------------------------------------------

    def _take_over(self, process: Process) -> Launch:
        """Want a QEMU that was found as it is; return what it runs with."""
        launch = self._wanted = launch_in(self.domid, process.argv)
        emit(self._log, "qemu.adopted", pid=process.pid, role=launch.role.value)
        self._set(Phase.STARTING, launch, process)
        return launch

    async def _bring_up(self, launch: Launch) -> None:
        config = self._settings.config
        # Until QEMU is spawned there is none: what is wanted may still change, whatever the policy.
        self._set(Phase.ABSENT)
        self._unpermitted = not self._guard.permit(launch)
        if self._unpermitted:
            await self._wait_changed()
            return
        pause = config.daemon.settle if not self._attempts else self._pause()
        with trio.move_on_after(pause):
            await self._wait_changed()
            return
        if self._wanted != launch:  # since the pause ended
            return
        where = files(config, self.domid)
        if process := adopt(where):
            await self._tend(process, self._take_over(process), fresh=False)
            return
        self._attempts += 1
        if refused := first_forbidden(image_drivers(launch.drives), config.images.directories):
            self._start_failed(launch, refused)
            return
        try:
            process = spawn(config, launch, where, xen=self._settings.xen)
        except OSError as error:
            if is_exhausted(error):
                self._attempts -= 1  # it is not this QEMU that is wrong
                raise
            self._start_failed(launch, f"{error.filename}: {error.strerror}")
            return
        emit(
            self._log,
            "qemu.starting",
            role=launch.role.value,
            attempt=self._attempts,
            argv=list(process.argv),
        )
        # Without its pid, which would say that a guest may run in it.
        self._set(Phase.STARTING, launch)
        await self._tend(process, launch, fresh=True)

    def _pause(self) -> float:
        qemu = self._settings.config.qemu
        pause: float = min(qemu.backoff * 2 ** (self._attempts - 1), qemu.backoff_max)
        return pause

    def _start_failed(self, launch: Launch, error: str) -> None:
        attempts = self._settings.config.qemu.start_attempts
        given_up = self._attempts >= attempts
        emit(
            self._log,
            "qemu.start_failed",
            attempt=self._attempts,
            attempts=attempts,
            pause=None if given_up else self._pause(),
            error=error,
        )
        if given_up:
            emit(self._log, "qemu.failed", error=error)
            self._set(Phase.FAILED, launch, error=error)
        else:
            self._set(Phase.ABSENT)

    # -- living ----------------------------------------------------------------------------------

    async def _tend(self, process: Process, launch: Launch, *, fresh: bool) -> None:
        """Stay with a living QEMU until it has ended; ``fresh`` while it has not greeted yet."""
        error, ended = "", False
        try:
            while not process.exited:
                fresh, error = await self._stay(process, launch, error, fresh=fresh)
            ended = True
        finally:
            self.qmp = None
            if not ended:
                process.release()
        self._ended(process, launch, error, fresh=fresh)

    async def _stay(
        self, process: Process, launch: Launch, error: str, *, fresh: bool
    ) -> tuple[bool, str]:
        """Talk to QEMU while it talks; return whether it never did, and the last error of QMP."""
        try:
            async with self._greeted(process) as qmp:
                new, fresh = fresh, False
                await self._follow(process, launch, qmp, fresh=new)
        except QmpError as refusal:
            self.qmp = None
            error = str(refusal)
            await self._without_qmp(process, launch, error, fresh=fresh)
        except OSError as shortage:
            if not is_exhausted(shortage):
                raise
            emit(self._log, "daemon.exhausted", error=str(shortage))
            await first(process.wait, partial(trio.sleep, _SHORTAGE))
        return fresh, error

    async def _follow(self, process: Process, launch: Launch, qmp: Qmp, *, fresh: bool) -> None:
        """Stay with a QEMU that has greeted until it ends or QMP does, and end one that is not wanted."""
        # One that became unwanted meanwhile has run no guest: it is not announced.
        if self._wanted == launch:
            self._running(process, launch, qmp, fresh=fresh)
        await first(process.wait, lambda: self._unwanted(launch), qmp.wait_closed)
        self.qmp = None
        if not self._is_wanted(launch) and not process.exited:
            await self._end(process, launch, qmp)

    def _greeted(self, process: Process) -> AbstractAsyncContextManager[Qmp]:
        timeout = self._settings.config.qemu.start_timeout
        return open_qmp(str(process.socket), timeout=timeout, on_event=self._said)

    def _running(self, process: Process, launch: Launch, qmp: Qmp, *, fresh: bool) -> None:
        if fresh:
            emit(
                self._log,
                "qemu.running",
                pid=process.pid,
                role=launch.role.value,
                version=".".join(map(str, qmp.version)),
                seconds=round(trio.current_time() - process.started, 3),
            )
        elif self.machine.error:
            emit(self._log, "qemu.qmp_back")
        self.qmp = qmp
        self._set(Phase.RUNNING, launch, process)
        self._on_change(self.domid)

    def _is_wanted(self, launch: Launch) -> bool:
        return self._wanted == launch and not self._renewing

    async def _unwanted(self, launch: Launch) -> None:
        while self._is_wanted(launch):
            await self._wait_changed()

    async def _without_qmp(
        self, process: Process, launch: Launch, error: str, *, fresh: bool
    ) -> None:
        """QEMU does not talk. One that never did is ended; one that runs a guest is left alone."""
        with trio.move_on_after(1.0):
            await process.wait()
        if process.exited:
            return
        if error != self.machine.error:  # once, and not at each attempt
            emit(self._log, "qemu.qmp_lost", error=error)
        if fresh or not self._is_wanted(launch):
            await self._end(process, launch, None)
            return
        self._set(Phase.RUNNING, launch, process, error=error)
        with trio.move_on_after(self._settings.config.qemu.backoff_max):
            await first(process.wait, lambda: self._unwanted(launch))

    def _said(self, event: Event) -> None:
        emit(self._log, "qemu.event", qmp_event=event.name, data=event.data)
        self._guard.hear(event)

    # -- ending ----------------------------------------------------------------------------------

    async def _end(self, process: Process, launch: Launch, qmp: Qmp | None) -> None:
        """Ask QEMU to quit, then TERM, then KILL; return when it has ended."""
        qemu = self._settings.config.qemu
        self._set(Phase.ENDING, launch, process)
        reason = _RENEWED if self._renewing else _reason(self._wanted)
        emit(self._log, "qemu.ending", pid=process.pid, reason=reason)
        if qmp:
            with trio.move_on_after(qemu.quit_timeout):
                await self._quit(qmp, qemu.quit_timeout)
                await process.wait()
                return
        self._signal(process, signal.SIGTERM)
        with trio.move_on_after(qemu.term_timeout):
            await process.wait()
            return
        self._signal(process, signal.SIGKILL)
        # Without a deadline: killed and still there it hangs in the kernel, and it is never doubled.
        await process.wait()

    def _signal(self, process: Process, number: signal.Signals) -> None:
        emit(self._log, "qemu.signalled", pid=process.pid, signal=number.name)
        process.send_signal(number)

    async def _quit(self, qmp: Qmp, timeout: float) -> None:
        try:
            await qmp.execute("quit", timeout=timeout)
        except QmpClosed:
            # It may close QMP before the reply is out: whether it ended is seen on the process.
            return

    def _ended(self, process: Process, launch: Launch, error: str, *, fresh: bool) -> None:
        asked = self.machine.phase is Phase.ENDING
        lived = trio.current_time() - process.started
        words = process.last_words()
        status = process.reap()
        wanted, self._renewing = self._is_wanted(launch), False
        if fresh and not (asked and not wanted):
            self._start_failed(launch, "; ".join(filter(None, (status, words or error))))
        elif asked:
            emit(self._log, "qemu.ended", pid=process.pid, seconds=round(lived, 3))
            self._set(Phase.ABSENT)
        else:
            self._died(process, launch, status, words, lived)

    def _died(
        self, process: Process, launch: Launch, status: str, words: str, lived: float
    ) -> None:
        emit(self._log, "qemu.died", pid=process.pid, status=status, error=words)
        qemu = self._settings.config.qemu
        if lived > qemu.backoff_max:
            self._attempts = 1
        error = f"QEMU {process.pid} died: {'; '.join(filter(None, (status, words)))}"
        if not qemu.restart or self._attempts >= qemu.start_attempts:
            emit(self._log, "qemu.failed", error=error)
            self._set(Phase.FAILED, launch, error=error)
        else:
            self._set(Phase.ABSENT)

    # -- saying ----------------------------------------------------------------------------------

    def _set(
        self,
        phase: Phase,
        launch: Launch | None = None,
        process: Process | None = None,
        error: str | None = None,
    ) -> None:
        machine = Machine(phase, launch, process.pid if process else None, error)
        if machine != self.machine:
            self.machine = machine
            self._on_change(self.domid)

    async def _wait_changed(self) -> None:
        """Wait for :meth:`want`, without a deadline: nothing else is to be done."""
        await self._changed.wait()
        self._changed = trio.Event()


_RENEWED = "a new replication session needs a new QEMU"


def _reason(wanted: Launch | None) -> str:
    return "its drives changed" if wanted else "its domain or its last disk has gone"
