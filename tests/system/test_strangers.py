"""Who may speak to a listener, and in whose name: strangers, impostors, keys and certificates."""

import contextlib
import os
import shutil
import socket
import ssl
import struct
import subprocess

import pytest

import steps
from parties import SMALL, TCP, Side, known, move
from processes import DEADLINE

KEY = "NIXL_AUTH_KEY_FILE"
NOT_ALLOWED = -6


class Listening(Side):
    """A side with a listener."""

    def __init__(self, start, name, **more):
        super().__init__(start, name, SMALL, enable_listen=True, listen_port=0, **more)
        self.port = self.peer(steps.call, "listen_port")


def send(side, listener, address="127.0.0.1"):
    side.peer(steps.call, "send_local_metadata", address, listener.port)


def fetch(side, listener, address="127.0.0.1"):
    side.peer(steps.call, "fetch_remote_metadata", listener.name, address, listener.port)


def until_known(side, name):
    steps.until(lambda: known(side, name), f"the metadata of {name}", pause=0.02)


def until_logged(side, words, times=1):
    """Looks until the words stand in what the side's process wrote, and returns that."""
    steps.until(lambda: side.peer.output().count(words) >= times, f"{words!r} in the log",
                pause=0.02)  # fmt: skip
    return side.peer.output()


def meet(side, listener, address="127.0.0.1"):
    fetch(side, listener, address)
    send(side, listener, address)
    until_known(side, listener.name)
    until_known(listener, side.name)


class Stranger:
    """Somebody with a socket, and without a library."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), DEADLINE)

    def __enter__(self):
        return self

    def __exit__(self, *what):
        self.socket.close()

    def say(self, word, payload=b""):
        body = b"NIXLCOMM:" + word + payload
        self.socket.sendall(struct.pack("<Q", len(body)) + body)

    def hear(self):
        """(word, payload) of the next message; (b"", b"") at the end."""
        head = self._take(8)
        if not head:
            return b"", b""
        body = self._take(struct.unpack("<Q", head)[0])
        return body[9:13], body[13:]

    def outcome(self):
        """(status, sentence) of what was said since the last time."""
        self.say(b"SYNC", b"\x05" * 8)
        word, payload = self.hear()
        assert word == b"DONE" and payload[:8] == b"\x05" * 8, (word, payload)
        return struct.unpack("<i", payload[8:12])[0], payload[12:].decode()

    def _take(self, count):
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while len(got) < count:
                more = self.socket.recv(count - len(got))
                if not more:
                    return b""
                got += more
        return got


@pytest.fixture
def key(tmp_path):
    """Makes the file of a key, and gives what the environment then has."""

    def make(text="a key that all agents of the test have", mode=0o600):
        path = tmp_path / f"key-{abs(hash((text, mode)))}"
        path.write_text(text)
        path.chmod(mode)
        return {**TCP, KEY: str(path)}

    return make


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """certificates(name, authority, days, names): the environment that has such a certificate."""
    program = shutil.which("openssl")
    if not program:
        pytest.skip("the program openssl is needed to make certificates")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words):
        done = subprocess.run([program, *map(str, words)], cwd=str(folder), timeout=DEADLINE,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        assert done.returncode == 0, done.stdout.decode()

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]

    def make(name, authority="authority", days=2, names="IP:127.0.0.1,IP:::1,DNS:localhost"):
        for ca in {"authority", authority}:
            if not (folder / f"{ca}.crt").exists():
                openssl("req", "-x509", *new_key, "-keyout", f"{ca}.key", "-out", f"{ca}.crt",
                        "-days", 2, "-subj", f"/CN={ca}")  # fmt: skip
        if not (folder / f"{name}.crt").exists():
            (folder / f"{name}.ext").write_text(f"subjectAltName={names}\n")
            openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr",
                    "-subj", f"/CN={name}")  # fmt: skip
            openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.crt", "-CAkey",
                    f"{authority}.key", "-CAcreateserial", "-out", f"{name}.crt", "-days", days,
                    "-extfile", f"{name}.ext")  # fmt: skip
        return {
            **TCP,
            "NIXL_TLS_CERT_FILE": str(folder / f"{name}.crt"),
            "NIXL_TLS_KEY_FILE": str(folder / f"{name}.key"),
            "NIXL_TLS_CA_FILE": str(folder / "authority.crt"),
        }

    return make


# --- without a key --------------------------------------------------------------------------------


def test_a_stranger_can_neither_withdraw_nor_replace_a_peer(start):
    a, b = Listening(start, "a"), Side(start, "b", SMALL)
    meet(b, a)
    move(a, b)
    with Stranger(a.port) as stranger:
        stranger.say(b"SEND")
        assert stranger.hear()[0] == b"LOAD"  # whoever reaches an open listener is answered
        for word, payload in ((b"INVL", b"b"), (b"LOAD", b.blob), (b"LOAD", b.blob[:-1])):
            stranger.say(word, payload)
            status, sentence = stranger.outcome()
            assert status == NOT_ALLOWED and "proof" in sentence
        stranger.say(b"SIGN", bytes(96))
        stranger.say(b"INVL", b"b")
        assert stranger.outcome()[0] == NOT_ALLOWED
    assert known(a, "b")
    move(a, b)
    b.peer(steps.call, "invalidate_local_metadata", "127.0.0.1", a.port)
    a.peer(steps.wait_for_event, "PEER_INVALIDATED", "b")
    assert not known(a, "b")


@pytest.mark.parametrize("how", ["sent", "fetched", "carried"])
def test_an_impostor_cannot_take_the_name_of_a_living_peer(start, how):
    a, b = Listening(start, "a"), Listening(start, "b")
    rival = Side(start, "b", SMALL, label="the rival of b")
    if how == "sent":
        send(b, a)
    elif how == "fetched":
        fetch(a, b)
    else:
        a.peer(steps.load, b.blob)
    until_known(a, "b")
    b.peer(steps.load, a.blob)
    move(a, b)

    send(rival, a)
    until_logged(rival, 'the name "b" belongs to an agent that is not known to be gone')
    rival.peer(steps.call, "invalidate_local_metadata", "127.0.0.1", a.port)
    until_logged(rival, "it was not that peer who asked for it")
    told = a.peer(steps.wait_for_event, "NAME_CONFLICT", "b")
    assert "refused" in told.text
    move(a, b)

    if how == "carried":  # nobody knows whether it lives, until somebody says so
        a.peer(steps.load, rival.blob)
    else:
        b.peer.kill()

        def taken():
            send(rival, a)
            return ("PEER_REPLACED", "b") in [event[:2] for event in a.peer(steps.events)]

        steps.until(taken, "the name's new holder", pause=0.2)
    rival.peer(steps.load, a.blob)
    move(a, rival)


def test_the_open_listener_warns_once_and_says_how_to_close_it(start, key):
    words = "serves whoever reaches it"
    a = Listening(start, "a", env=TCP)
    a.peer(steps.create, "a", SMALL, enable_listen=True, listen_port=0)
    written = until_logged(a, words)
    assert written.count(words) == 1
    for what in (KEY, "NIXL_TLS_CERT_FILE", "NIXL_LISTEN_ADDRESS"):
        assert what in written
    for env in ({**TCP, "NIXL_LISTEN_ADDRESS": "127.0.0.1"}, key()):
        quiet = Listening(start, "quiet", env=env)
        assert words not in quiet.peer.output()


def test_hundreds_of_slow_strangers_keep_nobody_out(start):
    a = Listening(start, "a", env={**TCP, "NIXL_GREETING_TIMEOUT_MS": "60000"})
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(Stranger(a.port)) for _ in range(400)]
        for round_ in range(5):
            for stranger in slow:
                with contextlib.suppress(OSError):
                    stranger.socket.send(b"\x10")
            meet(Side(start, f"peer-{round_}", SMALL), a)


# --- where it listens -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting, reached, not_reached",
    [
        ("127.0.0.1", ["127.0.0.1", "localhost"], ["127.0.0.2"]),
        ("::1", ["::1"], ["127.0.0.1"]),
        ("localhost", ["127.0.0.1", "::1"], ["127.0.0.2"]),
        ("127.0.0.2, ::1", ["127.0.0.2", "::1"], ["127.0.0.1"]),
        ("", ["127.0.0.2", "::1", "localhost"], []),
    ],
)
def test_listen_address(start, setting, reached, not_reached):
    a = Listening(start, "a", env={**TCP, "NIXL_LISTEN_ADDRESS": setting})
    for number, address in enumerate(reached):
        b = Side(start, f"b{number}", SMALL)
        meet(b, a, address)
    for address in not_reached:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, a.port), DEADLINE).close()


@pytest.mark.parametrize("setting", ["no-such-host", "127.0.0.1,300.1.1.1", "203.0.113.7", ","])
def test_a_bad_listen_address_is_an_error_that_says_so(start, setting):
    peer = start("a", env={**TCP, "NIXL_LISTEN_ADDRESS": setting})
    with pytest.raises(RuntimeError) as caught:
        peer(steps.create, "a", enable_listen=True, listen_port=0)
    assert "listen on" in str(caught.value)
    if setting != "203.0.113.7":  # a good one, of another host
        assert "NIXL_LISTEN_ADDRESS" in str(caught.value)


# --- a key ----------------------------------------------------------------------------------------


def test_agents_with_one_key_meet(start, key):
    a, b = Listening(start, "a", env=key()), Side(start, "b", SMALL, env=key())
    meet(b, a)
    move(a, b)
    b.peer(steps.call, "invalidate_local_metadata", "127.0.0.1", a.port)
    a.peer(steps.wait_for_event, "PEER_INVALIDATED", "b")


def test_without_the_key_nothing_is_told_and_both_ends_say_why(start, key):
    a = Listening(start, "a", env=key())
    with Stranger(a.port) as stranger:
        stranger.say(b"SEND")
        word, payload = stranger.hear()
        assert word == b"DENY" and KEY.encode() in payload
        assert stranger.hear() == (b"", b"")
    none = Side(start, "none", SMALL)
    other = Side(start, "other", SMALL, env=key("a key that only this agent has"))
    for side, told in (
        (none, "speaks in clear, and here NIXL_AUTH_KEY_FILE is set"),
        (other, "its key is another one; NIXL_AUTH_KEY_FILE must hold the same at both ends"),
    ):
        fetch(side, a)
        send(side, a)
        until_logged(side, told, 2)
        assert not known(side, "a") and not known(a, side.name)
    until_logged(a, "is refused: it speaks in clear")  # once in a while, whoever comes
    open_listener = Listening(start, "open", env=TCP)
    fetch(other, open_listener)
    until_logged(other, "neither NIXL_AUTH_KEY_FILE nor NIXL_TLS_CERT_FILE is set")


def inside_tls(stranger, newest=ssl.TLSVersion.TLSv1_3):
    """The stranger goes on inside of TLS, and believes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = newest
    stranger.socket = context.wrap_socket(stranger.socket)


def test_a_stranger_that_speaks_tls_gets_nowhere_without_the_key(start, key):
    a, b = Listening(start, "a", env=key()), Side(start, "b", SMALL, env=key())
    meet(b, a)
    for word, payload, told in (
        (b"SEND", b"", b"does not prove a key"),
        (b"INVL", b"b", b"does not prove a key"),
        (b"AUTH", b"", b"its key is another one"),
        (b"AUTH", bytes(32), b"its key is another one"),
        (b"LOAD", bytes(5000), b"at most 4096 are accepted"),
    ):
        with Stranger(a.port) as stranger:
            inside_tls(stranger)
            stranger.say(word, payload)
            heard, sentence = stranger.hear()
            assert heard == b"DENY" and told in sentence, (heard, sentence)
            assert stranger.hear() == (b"", b"")
    with Stranger(a.port) as stranger, pytest.raises((ssl.SSLError, ConnectionError)):
        inside_tls(stranger, ssl.TLSVersion.TLSv1_2)
    assert known(a, "b")
    move(a, b)


def test_a_key_that_cannot_be_used_is_an_error_that_names_the_file(start, key, tmp_path):
    for env, told in (
        ({KEY: str(tmp_path / "missing")}, "No such file"),
        ({KEY: str(tmp_path)}, "it is no file"),
        (key("short"), "holds 5 bytes, and at least 16 are needed"),
        (key("short\n"), "holds 5 bytes, and at least 16 are needed"),
    ):
        peer = start(env={**TCP, **env})
        with pytest.raises(RuntimeError) as caught:
            peer(steps.create, "a", enable_listen=True, listen_port=0)
        assert told in str(caught.value) and env[KEY] in str(caught.value)
        assert "short" not in str(caught.value).replace(env[KEY], "")
    lax = Listening(start, "lax", env=key(mode=0o644))
    assert "chmod 600" in until_logged(lax, "every user of this host may read the key")


# --- certificates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("with_key", [False, True])
def test_agents_with_certificates_meet(start, certificates, key, with_key):
    more = key() if with_key else {}
    a = Listening(start, "a", env={**certificates("one"), **more})
    for number, address in enumerate(("127.0.0.1", "::1", "localhost")):
        b = Side(start, f"b{number}", SMALL, env={**certificates("two"), **more})
        meet(b, a, address)
        move(a, b)


@pytest.mark.parametrize(
    "theirs, ours, told",
    [
        ({}, {"authority": "another"}, "does not accept this agent's certificate"),
        ({"authority": "another"}, {}, "NIXL_TLS_CA_FILE must hold the authority that signed it"),
        ({"days": -1}, {}, "certificate has expired"),
        ({}, {"days": -1}, "certificate expired"),
        ({"names": "DNS:elsewhere"}, {}, 'not made out to "127.0.0.1"'),
        ({}, None, "speaks in clear, and here NIXL_TLS_CERT_FILE"),
        (None, {}, "neither NIXL_AUTH_KEY_FILE nor NIXL_TLS_CERT_FILE is set"),
    ],
)
def test_certificates_that_do_not_fit(start, certificates, theirs, ours, told):
    def env(options):
        name = "-".join(map(str, ["of", *(options or {}).values()])).replace(":", "")
        return TCP if options is None else certificates(name, **options)

    a = Listening(start, "a", env=env(theirs))
    b = Side(start, "b", SMALL, env=env(ours))
    fetch(b, a)
    send(b, a)
    until_logged(b, told, 2)
    assert not known(b, "a") and not known(a, "b")


def test_the_name_in_a_certificate_need_not_be_checked(start, certificates):
    a = Listening(start, "a", env=certificates("elsewhere", names="DNS:elsewhere"))
    b = Side(start, "b", SMALL, env={**certificates("two"), "NIXL_TLS_CHECK_NAME": "no"})
    meet(b, a)


@pytest.mark.parametrize("variable", ["CERT", "KEY", "CA"])
def test_a_certificate_that_cannot_be_used_is_an_error_that_names_the_file(
    start, certificates, tmp_path, variable
):
    name = f"NIXL_TLS_{variable}_FILE"
    rubbish = tmp_path / "rubbish"
    rubbish.write_text("rubbish\n")
    for path in (tmp_path / "missing", rubbish, None):
        peer = start(env={**certificates("one"), name: str(path) if path else None})
        with pytest.raises(RuntimeError) as caught:
            peer(steps.create, "a", enable_listen=True, listen_port=0)
        assert name in str(caught.value)
        assert path is None or str(path) in str(caught.value)
    if variable == "KEY":
        other = certificates("other")[name]
        peer = start(env={**certificates("one"), name: other})
        with pytest.raises(RuntimeError) as caught:
            peer(steps.create, "a", enable_listen=True, listen_port=0)
        assert "is not that of the certificate" in str(caught.value)


BESIDE_PYTHON = """
import os, ssl
from nixl._api import nixl_agent, nixl_agent_config

def handshake():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.environ["NIXL_TLS_CERT_FILE"], os.environ["NIXL_TLS_KEY_FILE"])
    client = ssl.create_default_context(cafile=os.environ["NIXL_TLS_CA_FILE"])
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server, server_hostname="localhost"),
            context.wrap_bio(to_server, to_client, server_side=True)]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass

def live():
    config = nixl_agent_config(backends=["UCX"], enable_listen=True, listen_port=0)
    with nixl_agent("a", config) as a, nixl_agent("b", config) as b:
        handshake()
        a.fetch_remote_metadata("b", "127.0.0.1", b.listen_port())
        while not a.check_remote_metadata("b"):
            pass
        handshake()
    handshake()

with nixl_agent("first", nixl_agent_config(backends=[], enable_listen=True, listen_port=0)):
    handshake()
    pid = os.fork()  # what OpenSSL holds by now is copied; UCX is not there yet
    if pid == 0:
        live()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
live()
print("at the end")
"""


def test_it_lives_beside_the_openssl_of_python(ucx, program, certificates):
    status, output = program(BESIDE_PYTHON, **certificates("one"))
    assert status == 0 and output.endswith("at the end\n"), output
