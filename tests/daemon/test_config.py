import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from xencolo.errors import ConfigError
from xencolod import config

EXAMPLE = Path(__file__).parents[2] / "systemd" / "xencolod.toml"
RENDER = "from xencolod.config import example; print(example(), end='')"


def parsed(text: str, *, xen: bool = False) -> config.Config:
    return config.parse(text.encode(), name="x.toml", xen=xen)


def test_defaults_elsewhere_are_a_plain_pc() -> None:
    qemu = parsed("").qemu
    assert (qemu.binary, qemu.machine, qemu.memory) == ("qemu-system-x86_64", "pc,accel=tcg", 64)
    assert qemu.arguments == ("-nodefaults", "-no-user-config", "-display", "none", "-S")
    assert qemu.restart


def test_defaults_on_xen_fit_a_dom0() -> None:
    qemu = parsed("", xen=True).qemu
    assert qemu.binary == "/usr/libexec/xen-qemu-system-i386"
    assert (qemu.machine, qemu.memory) == ("xenfv,suppress-vmdesc=on", None)
    assert "-S" not in qemu.arguments
    assert not qemu.restart


def test_what_is_given_stands_beside_the_other_defaults() -> None:
    given = parsed(
        "[qemu]\nmemory = 128\nbackoff = 1\nextra_arguments = ['-k', 'de']\n[daemon]\ndomid = 3",
        xen=True,
    )
    assert (given.qemu.memory, given.qemu.backoff, given.daemon.domid) == (128, 1.0, 3)
    assert given.qemu.extra_arguments == ("-k", "de")
    untouched = msgspec.structs.replace(given.qemu, memory=None, backoff=0.5, extra_arguments=())
    assert untouched == parsed("", xen=True).qemu


def test_a_config_is_a_value() -> None:
    assert parsed("") == parsed("[xenstore]\n[daemon]\n[qemu]\n")
    with pytest.raises(AttributeError):
        parsed("").daemon.domid = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[qemu]\nmemory = 1\nx", "x.toml:3: Expected '=' after a key"),
        ("[qemu]\nmemory = [1,\n2,\n", "x.toml:4: "),
        ("[qemu]\nmemory = 1\nmemory = 2\n", "x.toml:3: Cannot overwrite a value"),
        ("[qemu]\nbinry = 'x'", "x.toml: qemu.binry: unknown key; did you mean qemu.binary?"),
        ("[qmeu]", "x.toml: qmeu: unknown key; did you mean qemu?"),
        ("binary = 'x'", "x.toml: binary: unknown key; did you mean qemu.binary?"),
        ("[fish]", "x.toml: fish: unknown key; known: xenstore, daemon, link, qemu"),
        ("[daemon]\nwalrus = 1", "walrus: unknown key; known: daemon.domid, daemon.rescan,"),
        (
            "[xenstore]\nwalrus = 1",
            "known: xenstore.socket, xenstore.timeout, xenstore.connections",
        ),
        ("[xenstore]\ntimeuot = 1", "timeuot: unknown key; did you mean xenstore.timeout?"),
        ("qemu = 1", "x.toml: qemu: Expected a table, got int"),
        ("[xenstore]\ntimeout = 0", "xenstore.timeout: Expected float > 0.0 (How long"),
        ("[xenstore]\ntimeout = nan", "xenstore.timeout: Expected float > 0.0"),
        ("[xenstore]\ntimeout = inf", "xenstore.timeout: Expected float <= 86400.0"),
        ("[xenstore]\ntimeout = '1'", "xenstore.timeout: Expected float, got str"),
        ("[xenstore]\nconnections = 17", "xenstore.connections: Expected int <= 16"),
        ("[xenstore]\nconnections = true", "xenstore.connections: Expected int, got bool"),
        ("[xenstore]\nsocket = 'run/x'", "xenstore.socket: Expected an absolute path"),
        ("[daemon]\ndomid = 0x7ff0", "daemon.domid: Expected int <= 32751"),
        ("[daemon]\nlog_directory = ''", "daemon.log_directory: Expected an absolute path"),
        (
            f"[daemon]\nruntime_directory = '/{'a' * 80}'",
            "daemon.runtime_directory: Expected str of length <= 80",
        ),
        ("[qemu]\nbinary = './x'", "qemu.binary: Expected an absolute path or a bare name"),
        ("[qemu]\nbinary = ''", "qemu.binary: Expected an absolute path or a bare name"),
        ('[qemu]\nmachine = "a\\u0000"', "qemu.machine: Expected text, not empty and without NUL"),
        ("[qemu]\narguments = ['-S', '']", "qemu.arguments[1]: Expected text, not empty"),
        ("[qemu]\narguments = '-S'", "qemu.arguments: Expected array, got str"),
        ("[qemu]\nform = '2017'", "qemu.form: Invalid enum value '2017' (How drives are written"),
        ("[qemu]\nrestart = 1", "qemu.restart: Expected bool, got int"),
        ("[qemu]\nbackoff = 31", "qemu.backoff_max: less than qemu.backoff, 31.0"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert str(caught.value).startswith("x.toml:")
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["arguments", "extra_arguments"])
@pytest.mark.parametrize(
    "item",
    [
        "-blockdev",
        "--drive",
        "-qmp",
        "-pidfile",
        "-daemonize",
        "-hda",
        "-M",
        "-m",
        "-xen-domid",
        "-name",
        "socket,id=xencolo-qmp,path=/x",
        "id=xencolo",
        '{"driver": "null-co", "node-name": "xencolo-0"}',
    ],
)
def test_the_daemons_own_arguments_are_refused(key: str, item: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(f"[qemu]\n{key} = ['-S', '''{item}''']")
    assert str(caught.value).startswith(f"x.toml: qemu.{key}[1]: {item} is the daemon's own; ")


def test_other_arguments_are_the_operators() -> None:
    items = ["-chardev", "socket,id=log,path=/run/xencolo.log", "-mon", "log", "-k", "drive"]
    given = parsed(f"[qemu]\nextra_arguments = {items!r}")
    assert given.qemu.extra_arguments == tuple(items)


def test_a_file_that_is_given_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    with pytest.raises(ConfigError, match=r"none\.toml: there is no such file"):
        config.load(path, xen=False)


def test_the_default_file_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "xencolod.toml")
    assert config.load(xen=False) == parsed("")
    (tmp_path / "xencolod.toml").write_text("[daemon]\nsettle = 0\n")
    assert config.load(xen=False).daemon.settle == 0.0


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path, xen=False)
    assert str(caught.value) == f"{tmp_path}: Is a directory"


def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"[qemu]\n\nbinary = '\xff'\n")
    with pytest.raises(ConfigError, match=r"x\.toml:3: not UTF-8"):
        config.load(path, xen=False)


@pytest.mark.parametrize(("content", "dom0"), [("control_d\n", True), ("", False)])
def test_a_dom0_is_told_by_the_capabilities(content: str, dom0: bool, tmp_path: Path) -> None:
    path = tmp_path / "capabilities"
    assert not config.on_xen(path)
    path.write_text(content)
    assert config.on_xen(path) is dom0


def test_the_example_is_the_table() -> None:
    assert EXAMPLE.read_text() == config.example(), (
        f'{EXAMPLE} is stale: python -c "{RENDER}" > {EXAMPLE}'
    )


def test_the_example_changes_nothing_and_each_of_its_keys_can_be_uncommented() -> None:
    text = config.example()
    assert parsed(text, xen=True) == parsed("", xen=True)
    lines = [line[1:] if re.match("#[a-z]", line) else line for line in text.splitlines()]
    given = tomllib.loads("\n".join(lines))
    shown = parsed("\n".join(lines), xen=True)
    assert {name: set(section) for name, section in given.items()} == {
        section.name: {field.name for field in msgspec.structs.fields(section.type)}
        for section in msgspec.structs.fields(config.Config)
    }
    # Two keys have no fixed default on a dom0: the example shows a value.
    expected = parsed("[xenstore]\nsocket='/run/xenstored/socket'\n[qemu]\nmemory=64", xen=True)
    assert shown == expected
