"""The commands by node, with the test in xencolod's place: it takes them and answers."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click
import pytest
import trio
from pyxs import Client

from tests.daemon.cli_rig import (
    PROGRAM,
    Process,
    ended,
    foreign,
    started,
    store,
    write,
    xencolo,
)
from tests.daemon.test_cli_output import read_lines
from tests.rigs import Server
from tests.rigs.servers import DEADLINE
from xencolo import requests
from xencolo.command import COMMANDS, Command, Rule, Word, parse
from xencolo.disk import Role
from xencolo.errors import CommandError
from xencolo.status import DomainState, DomainStatus, ReplicationStatus, Resync, status_values
from xencolod.asks import Reads, demand, read
from xencolod.cli import main
from xencolod.commands import control, output
from xencolod.commands.common import Settings, run
from xencolod.transaction import Transaction
from xencolod.xenstore import open_client

BASE = "/libxl/5/colo"
NODE, ANSWER, STATE = (f"{BASE}/{name}".encode() for name in ("command", "answer", "state"))


def waiting(client: Client) -> Command:
    """The command in the node, as soon as there is one."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if client.exists(NODE) and (value := client.read(NODE)):
            return parse(value)
        time.sleep(0.01)
    pytest.fail("no command came")


def take(server: Server, answer: str) -> Command:
    """Do as xencolod: empty the command and answer in one transaction (pyxs writes nothing empty)."""
    with foreign(server) as client:
        command = waiting(client)

    async def body(transaction: Transaction) -> None:
        said = f"{command.word} id={command.id} {answer}"
        batch = [requests.write(NODE.decode(), ""), requests.write(ANSWER.decode(), said)]
        await demand(transaction, batch)

    async def taken() -> None:
        async with open_client(server.socket) as client:
            await client.transaction(body)

    trio.run(taken)
    return command


def answer_again(client: Client, command: Command, answer: str) -> None:
    client.write(ANSWER, f"{command.word} id={command.id} {answer}".encode())


Asked = tuple[Process, Client]


@contextmanager
def asked(server: Server, *args: str) -> Iterator[Asked]:
    with started(server, *args) as process, foreign(server) as client:
        yield process, client


GIVEN = {
    ("checkpoint", "5"): Command(Word.CHECKPOINT),
    ("resync", "5"): Command(Word.RESYNC),
    ("resync", "5", "--to", "[::1]:9990", "--assume-equal"): Command(
        Word.RESYNC, "[::1]:9990", assume_equal=True
    ),
    ("failover", "5"): Command(Word.FAILOVER),
    ("failover", "5", "--force"): Command(Word.FAILOVER, force=True),
    ("detach", "5"): Command(Word.DETACH),
}


@pytest.mark.parametrize(("args", "command"), GIVEN.items(), ids=map(" ".join, GIVEN))
def test_a_command_is_written_and_its_answer_told(
    args: tuple[str, ...], command: Command, colo_guest: Server
) -> None:
    with started(colo_guest, *args) as process:
        taken = take(colo_guest, "running")
        assert re.fullmatch(r"[0-9a-f]{16}", taken.id or "")
        assert taken == Command(
            command.word, command.to, command.assume_equal, command.force, taken.id
        )
        returned, stdout, _ = ended(process)
    assert (returned, stdout) == (0, f"domain 5: {command.word} running\n")
    assert store(colo_guest, NODE) == {NODE.decode(): (b"", [b"n0"])}


def test_a_failure_is_told_and_is_1(colo_guest: Server) -> None:
    with started(colo_guest, "failover", "5") as process:
        take(colo_guest, "failed: its primary is alive")
        assert ended(process) == (
            1,
            "",
            "xencolo: failover of domain 5 failed: its primary is alive\n",
        )


# -- until it is done ------------------------------------------------------------------------------


def test_waiting_shows_the_states_until_the_effect_is_seen(colo_guest: Server) -> None:
    with asked(colo_guest, "resync", "5", "--wait") as (process, client):
        client.write(STATE, b"resyncing")
        command = take(colo_guest, "running")
        assert read_lines(process, 1) == ["domain 5: resyncing"]
        client.write(f"{BASE}/resync-done".encode(), b"7")  # in a pipe a state is said once
        answer_again(client, command, "done 3 disks")
        client.write(STATE, b"replicating")
        returned, stdout, stderr = ended(process)
    *states, said = stdout.splitlines()
    assert (returned, states, said, stderr) == (
        0,
        ["domain 5: replicating"],
        "domain 5: resync done, 3 disks",
        "",
    )


@pytest.mark.parametrize("word", Word)
def test_the_effect_of_each_command(word: Word, colo_guest: Server) -> None:
    effect = COMMANDS[word].effect
    with asked(colo_guest, word, "5", "--wait") as (process, client):
        client.write(STATE, (effect or "replicating").encode())
        take(colo_guest, "done")
        assert ended(process) == (0, f"domain 5: {word} done\n", "")


def test_waiting_ends_when_it_fails_on_the_way(colo_guest: Server) -> None:
    with asked(colo_guest, "resync", "5", "--wait") as (process, client):
        client.write(STATE, b"replicating")  # of the session before: the command still runs
        command = take(colo_guest, "running")
        assert read_lines(process, 1) == ["domain 5: replicating"]
        answer_again(client, command, "failed: no space")
        returned, stdout, stderr = ended(process)
    assert (returned, stdout) == (1, "")
    assert stderr == "xencolo: resync of domain 5 failed: no space\n"


def test_waiting_has_an_end_if_one_is_given(colo_guest: Server) -> None:
    with started(colo_guest, "resync", "5", "--wait", "--timeout", "2") as process:
        take(colo_guest, "running")
        returned, stdout, stderr = ended(process)
    assert (returned, stdout) in {(1, ""), (1, "domain 5: no state\n")}
    assert stderr == (
        "xencolo: resync of domain 5 is not done after 2 s; xencolod goes on with it: "
        "xencolo status 5 --watch\n"
    )


async def test_done_without_its_effect_is_an_error(
    colo_guest: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PROMPT", 0.5)

    def daemon() -> None:
        with foreign(colo_guest) as client:
            client.write(STATE, b"degraded")
            client.write(f"{BASE}/error".encode(), b"the peer is gone")
            take(colo_guest, "done")

    async with open_client(colo_guest.socket) as client, trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, daemon)
        with pytest.raises(
            CommandError,
            match=r"0.5 s later its state is degraded and not repl.*: the peer is gone",
        ):
            await control.perform(
                client, 5, Command(Word.RESYNC), wait=True, timeout=None, show=lambda _: None
            )


def test_waiting_lives_through_a_loss_of_xenstored(colo_guest: Server) -> None:
    with started(colo_guest, "resync", "5", "--wait") as process:
        write(colo_guest, STATE.decode(), b"resyncing")
        take(colo_guest, "running")
        assert read_lines(process, 1) == ["domain 5: resyncing"]
        colo_guest.kill()
        assert process.stderr
        told = process.stderr.readline().decode()
        assert str(colo_guest.socket) in told
        assert told.endswith("; waiting for xenstored\n")
        colo_guest.restart()  # its store is empty: the domain went with it
        assert ended(process) == (
            1,
            "",
            "xencolo: domain 5 does not exist: /local/domain/5 is absent\n",
        )


# -- what does not go well -------------------------------------------------------------------------


def test_a_command_that_nobody_takes_is_taken_back(colo_guest: Server) -> None:
    result = xencolo(colo_guest, "failover", "5", "--timeout", "0.3", status=1)
    assert result.stdout == ""
    assert result.stderr == (
        f"xencolo: no xencolod took failover from {NODE.decode()} in 0.3 s, and it was taken back: "
        "is xencolod running, and does it manage domain 5?\n"
    )
    with foreign(colo_guest) as client:
        assert client.read(NODE) == b""


def test_an_interrupted_command_is_taken_back(colo_guest: Server) -> None:
    with asked(colo_guest, "failover", "5") as (process, client):
        waiting(client)
        process.send_signal(signal.SIGINT)
        assert ended(process) == (130, "", "")
        assert client.read(NODE) == b""


def test_an_interrupt_never_hits_the_connection(colo_guest: Server) -> None:
    """A task of the connection that it ended would leave a failover to happen hours later."""

    async def hit() -> None:
        signal.raise_signal(signal.SIGINT)

    async def operation(client: Reads) -> bytes | None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hit)
            with suppress(KeyboardInterrupt):
                await trio.sleep_forever()
        return await read(client, "/local/domain/5/domid")

    with click.Context(main, obj=Settings(str(colo_guest.socket), verbose=False)):
        assert run(operation) == b"5"


def test_another_command_that_waits_is_left_alone(colo_guest: Server) -> None:
    write(colo_guest, NODE.decode(), b"detach id=1")
    result = xencolo(colo_guest, "resync", "5", status=1)
    assert f"another command waits in {NODE.decode()}: detach id=1" in result.stderr
    with foreign(colo_guest) as client:
        assert client.read(NODE) == b"detach id=1"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"detach id=1 done", "made room for another's, detach id=1 done"),
        (b"detach done", "made room for another's"),
        (b"rubbish", f"Wrong xenstore node {ANSWER.decode()}: 'rubbish'"),
    ],
)
def test_an_answer_to_somebody_else(answer: bytes, words: str, colo_guest: Server) -> None:
    with asked(colo_guest, "checkpoint", "5", "--wait") as (process, client):
        waiting(client)
        client.write(ANSWER, answer)
        client.delete(NODE)
        returned, stdout, stderr = ended(process)
    assert (returned, stdout) == (1, "")
    assert words in stderr
    assert stderr.count("\n") == 1


def test_a_domain_that_goes_meanwhile(colo_guest: Server) -> None:
    with asked(colo_guest, "detach", "5") as (process, client):
        waiting(client)
        xencolo(colo_guest, "domain", "destroy", "5")
        assert ended(process)[::2] == (
            1,
            "xencolo: domain 5 does not exist: /local/domain/5 is absent\n",
        )


def test_force_says_what_is_lost(colo_guest: Server) -> None:
    def force() -> str:
        return xencolo(
            colo_guest, "failover", "5", "--force", "--timeout", "0.1", status=1
        ).stderr.splitlines()[0]

    assert "knows of no checkpoint: if a copy to its disks was begun" in force()
    write(colo_guest, f"{BASE}/checkpoint", b"17")
    assert force().endswith("since checkpoint 17, is lost")
    write(colo_guest, f"{BASE}/checkpoint-time", str(int(time.time()) - 180).encode())
    assert force().endswith("since checkpoint 17, 3 min ago, is lost")


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["resync", "5", "--to", "a:b"], 1, "port 'b' is not a whole number"),
        (["resync", "9"], 1, "domain 9 does not exist"),
        (["failover", "9", "--force"], 1, "domain 9 does not exist"),
        (["detach", "5", "--timeout", "0"], 2, "0"),
        (["detach", "5", "--timeout", "nan"], 2, "nan is no number of seconds"),
        (["detach", "5", "--timeout", "1e400"], 2, "inf is no number of seconds"),
        (["detach", "5", "--force"], 2, "--force"),
    ],
)
def test_what_can_t_be_asked(args: list[str], status: int, words: str, colo_guest: Server) -> None:
    before = store(colo_guest)
    assert words in xencolo(colo_guest, *args, status=status).stderr
    assert store(colo_guest) == before


@pytest.mark.parametrize("rule", COMMANDS.values(), ids=COMMANDS)
def test_the_commands_are_those_of_the_table(rule: Rule) -> None:
    options = {f"--{option.name}" for option in rule.options} | {"--wait", "--timeout"}
    given = main.commands[rule.word].params
    assert {name for p in given if isinstance(p, click.Option) for name in p.opts} == options


# -- the status ------------------------------------------------------------------------------------

RESYNCING = ReplicationStatus(
    3, "192.0.2.2:9990", "5e55", 17, None, Resync(3 << 30, 4 << 30, 100 << 20, 10)
)


def publish(server: Server, state: DomainState, replication: ReplicationStatus) -> None:
    status = DomainStatus(state, Role.PRIMARY, None, 4711, {}, replication)
    for path, value in status_values(5, status).items():
        write(server, path, value.encode())


def test_status_shows_the_replication(colo_guest: Server) -> None:
    publish(colo_guest, DomainState.RESYNCING, RESYNCING)
    write(colo_guest, NODE.decode(), b"detach id=2")
    write(colo_guest, ANSWER.decode(), b"resync id=1 running")
    (shown,) = json.loads(xencolo(colo_guest, "status", "--json").stdout)
    assert (shown["command"], shown["answer"]) == ("detach id=2", "resync id=1 running")
    assert shown["replication"] == {
        "generation": 3,
        "peer": "192.0.2.2:9990",
        "session": "5e55",
        "checkpoint": 17,
        "checkpoint_time": None,
        "resync": {"done": 3 << 30, "total": 4 << 30, "rate": 100 << 20, "left": 10},
        "record": None,
    }
    publish(
        colo_guest,
        DomainState.RESYNCING,
        RESYNCING._replace(checkpoint_time=int(time.time()) - 7200),
    )
    assert xencolo(colo_guest, "status").stdout.splitlines()[1] == (
        "5\tweb\t-\tprimary\tprimary\tresyncing\t192.0.2.2:9990\t3\t17, 2 h ago\t75 %\t4711\t-"
    )


def test_a_checkpoint_alone_is_no_new_line(colo_guest: Server) -> None:
    with started(colo_guest, "status", "--watch") as process:
        read_lines(process, 3)
        write(colo_guest, f"{BASE}/checkpoint", b"1")
        time.sleep(0.5)
        write(colo_guest, f"{BASE}/peer", b"web2:9990")
        (line,) = read_lines(process, 1)
        assert line.split("\t")[6:9] == ["web2:9990", "-", "1"]


@contextmanager
def on_pty(server: Server, *args: str) -> Iterator[tuple[Process, int]]:
    """Run a command on a terminal, whose other end is given too."""
    master, slave = pty.openpty()
    environment = os.environ | {"XENSTORED_PATH": str(server.socket), "TERM": "xterm-256color"}
    environment |= {"COLUMNS": "200"}
    with subprocess.Popen([PROGRAM, *args], env=environment, stdout=slave, stderr=slave) as process:
        os.close(slave)
        try:
            yield process, master
        finally:
            process.kill()
            os.close(master)


def written_until(master: int, words: str) -> str:
    """What a terminal shows until the words have come, without its escape sequences."""
    end, data = time.monotonic() + DEADLINE, b""
    while True:
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode(errors="ignore"))
        if words in shown:
            return shown
        assert select.select([master], [], [], end - time.monotonic())[0], shown
        data += os.read(master, 65536)


BAR = "75 %, 3.0 GiB of 4.0 GiB, 100.0 MiB/s, 10 s left"


def test_a_terminal_gets_a_bar(colo_guest: Server) -> None:
    publish(colo_guest, DomainState.RESYNCING, RESYNCING)
    with on_pty(colo_guest, "status", "--watch") as (_, master):
        assert "5 web ━━" in written_until(master, BAR)
    with on_pty(colo_guest, "resync", "5", "--wait") as (process, master):
        with foreign(colo_guest) as client:
            command = take(colo_guest, "running")
            client.write(f"{BASE}/session".encode(), b"5e56")
            assert "domain 5: resyncing" in written_until(master, BAR)
            client.write(STATE, b"replicating")
            answer_again(client, command, "done")
        written_until(master, "domain 5: resync done")
        assert process.wait(DEADLINE) == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (2e5, "2 d")],
)
def test_durations(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text


@pytest.mark.parametrize(
    ("done", "total", "share"), [(0, 0, 0), (0, 5, 0), (999, 1000, 99), (5, 5, 100), (6, 5, 100)]
)
def test_percent(done: int, total: int, share: int) -> None:
    assert output.percent(Resync(done, total, 0, None)) == share
