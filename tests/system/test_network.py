"""Two hosts: network namespaces joined by a cable, metadata over the listener, data over TCP.

The namespaces carry this process's number in their names, and are removed whatever happens.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections import namedtuple

import pytest

import steps
from processes import DEADLINE

SIZE = 4 << 20
ADDRESSES = {
    "IPv4": {"left": "10.231.7.1", "right": "10.231.7.2", "prefix": "24", "order": "inet"},
    "IPv6": {"left": "fd4e:6978::1", "right": "fd4e:6978::2", "prefix": "64", "order": "inet6"},
}

Host = namedtuple("Host", "namespace device")


def ip(*words):
    done = subprocess.run(
        ["ip", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=DEADLINE
    )
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stdout.decode()}"
    return done.stdout.decode()


@pytest.fixture(scope="module")
def hosts():
    """{"left": Host, "right": Host}, which reach each other and nothing else."""
    if not shutil.which("ip"):
        pytest.skip("the program ip (iproute2) is needed for network namespaces")
    if os.geteuid() != 0:
        pytest.skip("only root can make network namespaces")
    pid = os.getpid()
    made = {
        "left": Host(f"nixl-left-{pid}", f"nxl{pid}"),
        "right": Host(f"nixl-right-{pid}", f"nxr{pid}"),
    }
    try:
        try:
            for host in made.values():
                ip("netns", "add", host.namespace)
            left, right = made["left"], made["right"]
            ip("link", "add", left.device, "netns", left.namespace, "type", "veth", "peer",
               "name", right.device, "netns", right.namespace)  # fmt: skip
        except AssertionError as error:
            pytest.skip(f"this machine does not allow network namespaces: {error}")
        for side, host in made.items():
            inside = ["-n", host.namespace]
            for family in ADDRESSES.values():
                address = f"{family[side]}/{family['prefix']}"
                late = ["nodad"] if family["order"] == "inet6" else []
                ip(*inside, "addr", "add", address, "dev", host.device, *late)
            ip(*inside, "link", "set", "lo", "up")
            ip(*inside, "link", "set", host.device, "up")
        for host in made.values():
            show = ["-n", host.namespace, "-o", "link", "show", "dev", host.device]
            steps.until(lambda show=show: "state UP" in ip(*show), "a carrier", pause=0.02)
        yield made
    finally:
        for host in made.values():
            with contextlib.suppress(AssertionError):
                ip("netns", "del", host.namespace)


def known(peer, name):
    return peer(steps.call, "check_remote_metadata", name)


def meet(requester, listener, address, port, names):
    """The requester has no listener: it asks for the other's metadata, and sends its own."""
    requester(steps.call, "fetch_remote_metadata", names[1], address, port)
    requester(steps.call, "send_local_metadata", address, port)
    steps.until(lambda: known(requester, names[1]), "the listener's metadata", pause=0.02)
    steps.until(lambda: known(listener, names[0]), "the requester's metadata", pause=0.02)


@pytest.mark.parametrize("family", ADDRESSES)
def test_two_hosts_meet_and_move_bytes_both_ways(hosts, start, family):
    addresses = ADDRESSES[family]
    peers, bases = {}, {}
    for side, host in hosts.items():
        env = {
            "UCX_TLS": "tcp",
            "UCX_NET_DEVICES": host.device,
            "UCX_TCP_AF_PRIO": addresses["order"],
        }
        prefix = ["ip", "netns", "exec", host.namespace]
        peers[side] = start(side, env=env, prefix=prefix)
        listens = side == "right"
        _, bases[side] = peers[side](
            steps.create, side, SIZE, enable_listen_thread=listens, listen_port=0
        )
    left, right = peers["left"], peers["right"]
    port = right(steps.call, "listen_port")
    assert port and left(steps.call, "listen_port") == 0
    meet(left, right, addresses["right"], port, ("left", "right"))

    rows = {side: [(base, SIZE, 0)] for side, base in bases.items()}
    whole = ([0], [0], SIZE)
    for source, other in (("left", "right"), ("right", "left")):
        for op in ("WRITE", "READ"):
            peers[source](steps.fill, 1)
            peers[other](steps.fill, 2)
            peers[source](steps.move, op, other, rows[source], rows[other], b"moved")
            if op == "WRITE":
                peers[other](steps.verify, 2, 1, whole)
            else:
                peers[source](steps.verify, 1, 2, whole)
            assert peers[other](steps.notified, source, 1) == [b"moved"]

    left(steps.call, "invalidate_local_metadata", addresses["right"], port)
    steps.until(lambda: not known(right, "left"), "the metadata's end", pause=0.02)


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "::1"])
def test_the_listener_is_found_by_name_and_by_address(start, address):
    requester, listener = start("requester"), start("listener")
    requester(steps.create, "requester", 4096)
    listener(steps.create, "listener", 4096, enable_listen_thread=True, listen_port=0)
    port = listener(steps.call, "listen_port")
    meet(requester, listener, address, port, ("requester", "listener"))


def test_what_nobody_answers_to_is_logged_and_harms_nothing(start):
    requester = start("requester", env={"NIXL_CONNECT_TIMEOUT_MS": "1000"})
    requester(steps.create, "requester", 4096)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, and not listened on: connections are refused
        port = unused.getsockname()[1]
        requester(steps.call, "fetch_remote_metadata", "nobody", "127.0.0.1", port)
        steps.until(lambda: "refused" in requester.output(), "a line in the log", pause=0.02)
    assert f"fetch metadata from 127.0.0.1:{port}" in requester.output()
    assert not known(requester, "nobody")


def test_another_agent_than_the_one_asked_for_is_not_loaded(start):
    requester, listener = start("requester"), start("listener")
    requester(steps.create, "requester", 4096)
    listener(steps.create, "listener", 4096, enable_listen_thread=True, listen_port=0)
    port = listener(steps.call, "listen_port")
    requester(steps.call, "fetch_remote_metadata", "somebody", "127.0.0.1", port)
    steps.until(lambda: "somebody" in requester.output(), "a line in the log", pause=0.02)
    assert not known(requester, "somebody") and not known(requester, "listener")
    meet(requester, listener, "127.0.0.1", port, ("requester", "listener"))


def test_a_port_that_is_taken_is_an_error_that_says_so(start):
    peer = start("late")
    with socket.socket(socket.AF_INET6) as taken:
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError) as caught:
            peer(steps.create, "late", enable_listen_thread=True, listen_port=port)
        words = rf'create agent "late".*\b{port}\b.*Address already in use'
        assert re.search(words, str(caught.value)), caught.value
    peer(steps.create, "late", enable_listen_thread=True, listen_port=port)
    assert peer(steps.call, "listen_port") == port


def test_strangers_do_not_disturb_the_listener(start):
    requester, listener = start("requester"), start("listener")
    requester(steps.create, "requester", 4096)
    listener(steps.create, "listener", 4096, enable_listen_thread=True, listen_port=0)
    port = listener(steps.call, "listen_port")
    sockets = []
    try:
        for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096, bytes(4096), b"NIXL"):
            stranger = socket.create_connection(("127.0.0.1", port), DEADLINE)
            sockets.append(stranger)  # left open: whoever waits for its end would wait
            with contextlib.suppress(OSError):
                stranger.sendall(words)
        meet(requester, listener, "127.0.0.1", port, ("requester", "listener"))
    finally:
        for stranger in sockets:
            stranger.close()
