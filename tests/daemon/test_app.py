"""What xencolod needs for itself: one runtime directory, and a place for its own store."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon.reconciler_rig import config_in
from xencolo.errors import ConfigError
from xencolod.app import only_one

#: A daemon that is killed while it starts a QEMU: the child is forked, and not exec'd yet.
_FORKING = """
import os, sys, time
from xencolod.app import only_one
from pathlib import Path
from tests.daemon.reconciler_rig import config_in
only_one(config_in(Path(sys.argv[1])))
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(600)
"""


def test_a_second_one_is_refused_and_none_is_locked_out_by_a_child(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    first = subprocess.Popen(
        [sys.executable, "-c", _FORKING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout
    child = int(first.stdout.readline())
    try:
        with pytest.raises(ConfigError, match="another xencolod runs in"):
            only_one(config)
        first.kill()
        first.wait()
        os.close(only_one(config))
    finally:
        first.kill()
        os.kill(child, signal.SIGKILL)
        first.stdout.close()


def xencolod(*arguments: str | Path) -> tuple[int, str]:
    """Run the daemon; return its exit status and what it says on stderr."""
    done = subprocess.run(
        [Path(sys.executable).with_name("xencolod"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.returncode, done.stderr


def test_a_store_that_can_be_nowhere_is_one_line(tmp_path: Path) -> None:
    config = tmp_path / "xencolod.toml"
    config.write_text(f'[daemon]\nruntime_directory = "{tmp_path}/run"\n')
    socket = config / "run" / "socket"
    status, said = xencolod("--config", config, "--xenstore", f"embedded:{socket}")
    assert status == 1
    assert said.startswith(f"xencolod: {socket}: the embedded xenstore can't be there: ")
    assert said.count("\n") == 1


def test_a_wrong_configuration_is_one_line_and_nothing_that_systemd_tries_again(
    tmp_path: Path,
) -> None:
    config = tmp_path / "xencolod.toml"
    config.write_text("[daemon]\ncolour = 1\n")
    status, said = xencolod("--config", config)
    assert status == os.EX_CONFIG
    assert said.startswith(f"xencolod: {config}: ")
    assert said.count("\n") == 1
    unit = (Path(__file__).parents[2] / "systemd" / "xencolod.service").read_text()
    assert f"RestartPreventExitStatus=2 {status}\n" in unit
