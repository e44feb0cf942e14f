"""Keys on disk: what is made, what is refused, what is recorded, and what the command line says."""

from __future__ import annotations

import errno
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
import zmq
import zmq.auth

from edge import keys
from edge.audit import audit_path, verify
from edge.errors import ResourceError
from edge.keys import Keyring, KeysError, load_pair, load_public_key, make_pair, parse_public_key
from tests.edge.test_cli import maskline
from tests.support import marker_recipe


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    """Of a line that has its own pair."""
    made = Keyring(tmp_path / "state")
    made.make("anna")
    return made


def a_key() -> bytes:
    return zmq.curve_keypair()[0]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def audited(state_dir: Path) -> list[tuple[str, str | None]]:
    path = audit_path(state_dir)
    assert verify(path).troubles == ()
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [(record["what"], record.get("name")) for record in records]


def test_a_pair_is_made_for_its_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    before = os.umask(0)  # whatever the shell's is
    try:
        pair = make_pair(tmp_path / "made" / "here", "client")
    finally:
        os.umask(before)
    folder = tmp_path / "made" / "here"
    assert {p.name: mode(p) for p in folder.iterdir()} == {"client.key": 0o644, "client.key_secret": 0o600}
    assert mode(folder) == 0o700
    assert zmq.curve_public(pair.secret) == pair.public
    assert load_pair(folder / "client.key_secret") == pair
    assert zmq.auth.load_certificate(folder / "client.key") == (pair.public, None), "other tools read it too"
    assert pair.secret.decode() not in repr(pair)
    with pytest.raises(KeysError, match="is there already"):
        make_pair(folder, "client")
    (folder / "client.key_secret").unlink()
    with pytest.raises(KeysError, match="is there already"):
        make_pair(folder, "client")
    assert {p.name for p in folder.iterdir()} == {"client.key"}


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    make_pair(tmp_path / "k", "client")
    secret = tmp_path / "k" / "client.key_secret"
    for bits in (0o640, 0o604, 0o620):
        secret.chmod(bits)
        with pytest.raises(KeysError, match=f"mode {bits:o}.*chmod 600"):
            load_pair(secret)


def test_a_file_that_is_the_wrong_one_is_named(tmp_path: Path, keyring: Keyring) -> None:
    make_pair(tmp_path / "k", "client")
    with pytest.raises(KeysError, match=r"name the file that ends in \.key$"):
        load_public_key(tmp_path / "k" / "client.key_secret")
    with pytest.raises(KeysError, match=r"name the file that ends in \.key_secret"):
        load_pair(tmp_path / "k" / "client.key")
    with pytest.raises(KeysError, match=r"nothing\.key.*No such file"):
        load_public_key(tmp_path / "nothing.key")
    with pytest.raises(KeysError, match="not a key file"):
        load_public_key(tmp_path)
    for wrong in (b"", b"public-key", b"\xff\x00" * 100, b"x" * 100_000, b'curve\n    public-key = "short"\n'):
        (tmp_path / "wrong.key").write_bytes(wrong)
        with pytest.raises(KeysError, match=r"not a key file|damaged"):
            load_public_key(tmp_path / "wrong.key")
    os.mkfifo(tmp_path / "pipe.key")
    with pytest.raises(KeysError, match="not a key file"):
        load_public_key(tmp_path / "pipe.key")
    with pytest.raises(KeysError, match="this is the line's own key"):
        keyring.allow("gate-3", load_public_key(keyring.public_path), "anna")


@pytest.mark.parametrize("text", ["", "short", "x" * 41, "ä" * 20, "~" * 40, "#####" * 8, "a\0b", "\udcff", "y" * 5000])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(KeysError, match="neither a file nor a key"):
        parse_public_key(text)


def test_a_key_is_given_as_text_or_as_a_file(tmp_path: Path) -> None:
    pair = make_pair(tmp_path / "k", "client")
    assert parse_public_key(pair.public.decode()) == pair.public
    assert parse_public_key(str(tmp_path / "k" / "client.key")) == pair.public


def test_nobody_is_allowed_at_first(tmp_path: Path, keyring: Keyring) -> None:
    assert keyring.allowed() == {}
    assert mode(keyring.folder) == 0o700
    assert mode(keyring.folder / "line.key_secret") == 0o600
    none_yet = Keyring(tmp_path / "other")
    for act in (none_yet.pair, lambda: none_yet.allow("a", a_key(), "anna"), lambda: none_yet.revoke("a", "anna")):
        with pytest.raises(KeysError, match=r"no keys yet.*keys new --line"):
            act()
    assert none_yet.allowed() == {}


def test_allow_and_revoke_change_the_list_and_are_recorded(tmp_path: Path, keyring: Keyring) -> None:
    first, second = a_key(), a_key()
    keyring.allow("gate-3", first, "anna")
    keyring.allow("panel", second, "otto")
    assert keyring.allowed() == {"gate-3": first, "panel": second}
    keyring.revoke("gate-3", "anna")
    assert keyring.allowed() == {"panel": second}
    keyring.allow("gate-4", first, "anna")
    assert audited(tmp_path / "state") == [
        ("keys.new", None),
        *[("keys.allow", "gate-3"), ("keys.allow", "panel"), ("keys.revoke", "gate-3"), ("keys.allow", "gate-4")],
    ]


def test_a_name_or_key_that_is_taken_is_refused_and_changes_nothing(tmp_path: Path, keyring: Keyring) -> None:
    first, second = a_key(), a_key()
    keyring.allow("gate-3", first, "anna")
    with pytest.raises(KeysError, match="gate-3: is allowed already, with this key"):
        keyring.allow("gate-3", first, "anna")
    with pytest.raises(KeysError, match=r"gate-3: is allowed already, with another key.*keys revoke"):
        keyring.allow("gate-3", second, "anna")
    with pytest.raises(KeysError, match="is allowed already, as gate-3"):
        keyring.allow("gate-4", first, "anna")
    with pytest.raises(KeysError, match="gate-9: is not allowed; allowed are: gate-3"):
        keyring.revoke("gate-9", "anna")
    for name in ("", "Gate", "../gate", "a b", "-a", "x" * 32, "gate\n"):
        with pytest.raises(KeysError, match="expected a name"):
            keyring.allow(name, second, "anna")
        with pytest.raises(KeysError, match="is not allowed"):
            keyring.revoke(name, "anna")
    assert keyring.allowed() == {"gate-3": first}
    assert len(audited(tmp_path / "state")) == 2


def test_nobody_is_let_in_without_a_record_and_a_revoked_one_is_out_even_so(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring.allow("gate-3", a_key(), "anna")

    def full(*_: object, **__: object) -> str:
        raise ResourceError("the disk is full")

    monkeypatch.setattr(keyring._trail, "record", full)
    with pytest.raises(ResourceError):
        keyring.allow("gate-4", a_key(), "anna")
    assert list(keyring.allowed()) == ["gate-3"]
    with pytest.raises(ResourceError):
        keyring.revoke("gate-3", "anna")
    assert keyring.allowed() == {}


def test_files_put_there_by_hand(keyring: Keyring) -> None:
    keyring.allow("gate-3", a_key(), "anna")
    folder = keyring.folder / "allowed"
    for name in ("Upper.key", "notes.txt", ".gate.key", "gate-5.key~"):
        (folder / name).write_bytes((folder / "gate-3.key").read_bytes())
    (folder / "broken.key").write_bytes(b"x")
    (folder / "dir.key").mkdir()
    assert list(keyring.allowed()) == ["gate-3"]
    (folder / "copy.key").write_bytes((folder / "gate-3.key").read_bytes())
    with pytest.raises(KeysError, match=r"revoked, but .* allows its key as copy"):
        keyring.revoke("gate-3", "anna")
    assert list(keyring.allowed()) == ["copy"]
    keyring.revoke("broken", "anna")
    assert not (folder / "broken.key").exists()


def test_a_list_that_cannot_be_read_is_unknown_and_not_empty(keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring.allow("gate-3", a_key(), "anna")

    def none_left(*_: object) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as flooded:
        flooded.setattr(keys.os, "listdir", none_left)
        with pytest.raises(ResourceError, match="Too many open files"):
            keyring.allowed()
    monkeypatch.setattr(keys.zmq.auth, "load_certificate", none_left)
    with pytest.raises(ResourceError, match="Too many open files"):
        keyring.allowed()


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, keyring: Keyring) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o775)
    with pytest.raises(KeysError, match=r"others may write in it .mode 775.: chmod go-w"):
        make_pair(open_to_all, "client")
    if os.getuid() != 0:
        with pytest.raises(KeysError, match="belongs to root"):
            make_pair(Path("/usr"), "client")
        return
    nobody = pwd.getpwnam("nobody")
    os.chown(keyring.folder, nobody.pw_uid, nobody.pw_gid)
    for act in (lambda: keyring.allow("a", a_key(), "x"), lambda: keyring.revoke("a", "x"), lambda: keyring.make("x")):
        with pytest.raises(KeysError, match="belongs to nobody, and you are root; do this as nobody: sudo -u nobody"):
            act()


def test_a_libzmq_without_curve_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys.zmq, "has", lambda feature: feature != "curve")
    with pytest.raises(KeysError, match=r"without CURVE .libsodium.*pip install"):
        make_pair(tmp_path / "k", "client")


def test_of_several_who_give_a_name_at_once_one_does(tmp_path: Path, keyring: Keyring) -> None:
    code = (
        "import sys, pathlib, zmq; from edge.keys import Keyring, KeysError\n"
        "for i in range(30):\n"
        "    try: Keyring(pathlib.Path(sys.argv[1])).allow(f'gate-{i}', zmq.curve_keypair()[0], 'x'); print(i)\n"
        "    except KeysError: pass"
    )
    state = tmp_path / "state"
    givers = [subprocess.Popen([sys.executable, "-c", code, str(state)], stdout=subprocess.PIPE) for _ in range(3)]
    won = [int(word) for giver in givers for word in giver.communicate(timeout=100)[0].split()]
    assert [giver.returncode for giver in givers] == [0, 0, 0]
    assert sorted(won) == list(range(30))
    assert len(keyring.allowed()) == 30
    assert len(audited(state)) == 1 + 30


def test_the_commands(tmp_path: Path) -> None:
    recipe, state, box = marker_recipe(tmp_path), tmp_path / "state" / "test", tmp_path / "box"

    def run(*arguments: object) -> str:
        done = maskline("keys", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "Give this file to its clients" in run("new", "--line", recipe)
    client = make_pair(box, "client").public.decode()
    while not client.startswith("-"):  # the worst of keys on a command line
        client = a_key().decode()
    run("allow", recipe, "gate-3", client)
    run("allow", recipe, "gate-4", box / "client.key")
    listed = run("list", recipe)
    assert Keyring(state).pair().public.decode() in listed
    assert f"{client}  gate-3" in listed
    run("revoke", recipe, "gate-3")
    run("revoke", recipe, "gate-4")
    assert "Nobody is allowed" in run("list", recipe)
    assert [what for what, _ in audited(state)] == ["keys.new", *["keys.allow"] * 2, *["keys.revoke"] * 2]
    printed = run("new", tmp_path / "other")
    assert load_pair(tmp_path / "other" / "client.key_secret").public.decode() in printed
    assert load_pair(tmp_path / "other" / "client.key_secret").secret.decode() not in printed
    for mistake in (["new"], ["new", tmp_path, "--line", recipe], ["revoke", recipe, "x"], ["allow", recipe, "a", "b"]):
        done = maskline("keys", *mistake)
        assert done.returncode == 78
        assert "Traceback" not in done.stderr
