"""The commands by node, with the test in xencolod's place: it takes them and answers."""

import json
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyxs import Client

from tests.daemon.cli_rig import DEADLINE, Process, ended, foreign, started, store, write, xencolo
from tests.daemon.test_cli_output import on_a_terminal, read_lines
from tests.rigs import Server
from xencolo.command import COMMANDS, Command, Word, parse
from xencolo.status import ReplicationStatus, Resync
from xencolod.cli import main
from xencolod.commands import output

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


def take(client: Client, answer: str) -> Command:
    """Do as xencolod: empty the command and answer in one transaction."""
    command = waiting(client)
    client.transaction()
    client.write(NODE, b"")
    client.write(ANSWER, f"{command.word} id={command.id} {answer}".encode())
    client.commit()
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


@pytest.mark.parametrize(("args", "command"), GIVEN.items(), ids=lambda value: " ".join(value[:2]))
def test_a_command_is_written_and_its_answer_told(
    args: tuple[str, ...], command: Command, colo_guest: Server
) -> None:
    with asked(colo_guest, *args) as (process, client):
        taken = take(client, "running")
        assert re.fullmatch(r"[0-9a-f]{16}", taken.id or "")
        assert taken == Command(
            command.word, command.to, command.assume_equal, command.force, taken.id
        )
        returned, stdout, _ = ended(process)
    assert (returned, stdout) == (0, f"domain 5: {command.word} running\n")
    assert store(colo_guest, NODE) == {NODE.decode(): (b"", [b"n0"])}
