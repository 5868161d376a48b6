"""The daemon: the nursery that owns everything, its signals, and what systemd is told."""

import fcntl
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import msgspec
import trio

from xencolo import requests
from xencolo.errors import ConfigError, XenstoreError
from xencolo.paths import domain_path
from xencolo.store import Store
from xencolo.wire import Packet
from xencolod.config import Config, load, on_xen
from xencolod.embedded import serve_embedded
from xencolod.hub import Hub
from xencolod.log import Logger, configure, emit
from xencolod.notify import Notifier
from xencolod.reconciler import Reconciler
from xencolod.supervisor import Settings
from xencolod.xenstore import open_client

_EMBEDDED = "embedded"


@asynccontextmanager
async def _xenstored(where: str | None, config: Config, log: Logger) -> AsyncIterator[str | None]:
    """Serve the in-memory store if asked for; yield the socket to connect to.

    :raises ConfigError: the store can't be served there.
    """
    kind, _, path = (where or "").partition(":")
    if kind != _EMBEDDED:
        yield where or config.xenstore.socket
        return
    path = path or f"{config.daemon.runtime_directory}/xenstored.socket"
    try:
        Path(path).parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: the embedded xenstore can't be there: {error}") from error
    store = Store()
    _seed(store, config.daemon.domid)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_embedded, path, store)
        emit(log, "embedded.listening", socket=path)
        yield path
        nursery.cancel_scope.cancel()


def _seed(store: Store, domid: int) -> None:
    """Write what xen-init-dom0 does; a store without it counts as not filled yet."""
    session = store.connect()
    home = domain_path(domid)
    for path, value in ((f"{home}/name", "Domain-0"), (f"{home}/domid", str(domid))):
        request = requests.write(path, value)
        store.handle(session, Packet(request.op, 0, 0, request.payload))
    store.disconnect(session)


def only_one(config: Config) -> int:
    """Lock the runtime directory; two daemons would run two QEMUs.

    :raises ConfigError: another xencolod runs there, or it can't be had.
    """
    runtime = Path(config.daemon.runtime_directory)
    try:
        runtime.mkdir(mode=0o750, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(runtime / "xencolod.lock", flags, 0o600)
    except OSError as error:
        raise ConfigError(f"daemon.runtime_directory: {runtime}: {error.strerror}") from error
    try:
        # Not flock: a child that a killed daemon was just forking would hold that until it is exec'd.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"another xencolod runs in {runtime}; end it first") from None
    return descriptor


class Daemon:
    """What the signals act on."""

    def __init__(
        self,
        settings: Settings,
        config_path: Path | None,
        reconciler: Reconciler,
        hub: Hub,
        notifier: Notifier,
    ) -> None:
        self._settings = settings
        self._hub = hub
        self._config_path = config_path
        self._reconciler = reconciler
        self._notifier = notifier

    async def signals(self, scope: trio.CancelScope) -> None:
        """Answer SIGHUP with a reload and SIGTERM or SIGINT with the end."""
        with trio.open_signal_receiver(signal.SIGHUP, signal.SIGTERM, signal.SIGINT) as received:
            async for number in received:
                if number != signal.SIGHUP:
                    self._notifier.stopping()
                    emit(self._settings.log, "daemon.stopping", signal=signal.Signals(number).name)
                    await self._reconciler.crews.rest()
                    scope.cancel()
                    return
                self._reload()

    def _reload(self) -> None:
        """Read the configuration again; one that can't be used changes nothing."""
        self._notifier.reloading()
        log, name = self._settings.log, str(self._config_path or "default")
        try:
            config = load(self._config_path)
        except ConfigError as error:
            emit(log, "daemon.reload_failed", config=name, error=str(error))
        else:
            self._settings.config = _reloadable(config, self._settings.config)
            emit(log, "daemon.reloaded", config=name)
            self._hub.reload()
            self._reconciler.start_over()
        self._notifier.ready(self._status())

    async def tell_systemd(self) -> None:
        """Say when ready, then how many domains, and feed the watchdog."""
        self._notifier.status("waits for xenstored")
        await self._reconciler.first_pass.wait()
        self._notifier.ready(self._status())
        interval = self._notifier.watchdog_interval
        if interval is None:
            return
        while True:
            await trio.sleep(interval)
            self._notifier.watchdog()
            self._notifier.status(self._status())

    def _status(self) -> str:
        domains, devices = self._reconciler.counts
        return f"{domains} managed domains, {devices} disks"


def _reloadable(new: Config, old: Config) -> Config:
    """Return the new configuration with the old places: they can't move under living QEMUs."""
    daemon = msgspec.structs.replace(
        new.daemon,
        domid=old.daemon.domid,
        runtime_directory=old.daemon.runtime_directory,
        log_directory=old.daemon.log_directory,
        state_directory=old.daemon.state_directory,
    )
    return msgspec.structs.replace(new, xenstore=old.xenstore, daemon=daemon, link=old.link)


async def _main(config: Config, path: Path | None, xenstore: str | None, log: Logger) -> None:
    settings = Settings(config, on_xen(), log)
    notifier = Notifier.from_environment(os.environ)
    emit(log, "daemon.started", version=version("xencolo"), pid=os.getpid(), xen=settings.xen)
    async with AsyncExitStack() as stack:
        socket = await stack.enter_async_context(_xenstored(xenstore, config, log))
        nursery = await stack.enter_async_context(trio.open_nursery())
        reconciler: Reconciler | None = None

        def on_connection(error: XenstoreError | None) -> None:
            if reconciler:
                reconciler.connection_changed(error)

        client = await stack.enter_async_context(
            open_client(
                socket,
                connections=config.xenstore.connections,
                timeout=config.xenstore.timeout,
                reconnect_max=config.xenstore.reconnect_max,
                patient=True,
                on_connection=on_connection,
            )
        )
        hub = Hub(client, settings)
        reconciler = Reconciler(client, settings, hub, nursery)
        daemon = Daemon(settings, path, reconciler, hub, notifier)
        watch = await stack.enter_async_context(client.watch(*reconciler.roots()))
        nursery.start_soon(daemon.signals, nursery.cancel_scope)
        nursery.start_soon(daemon.tell_systemd)
        nursery.start_soon(hub.run)
        nursery.start_soon(reconciler.follow, watch)
        await reconciler.run()


def run(
    config: Config, path: Path | None, xenstore: str | None, log_format: str | None, *, debug: bool
) -> None:
    """Run the daemon until SIGTERM.

    :param path: the TOML file that SIGHUP reads, by default ``/etc/xencolo/xencolod.toml`` if it is there.
    :param xenstore: a socket, ``embedded`` or ``embedded:SOCKET``; by default as libxenstore finds it.
    :param log_format: ``json`` or ``console``; by default console on a terminal.
    :param debug: whether events of level ``debug`` are written.
    :raises ConfigError: the places in the configuration can't be used, or another daemon runs.
    """
    log = configure(log_format, level="debug" if debug else "info")
    lock = only_one(config)
    try:
        trio.run(_main, config, path, xenstore, log)
    finally:
        os.close(lock)
