"""Runs the real nixlbench, and reads what it prints as scripts and people do."""

import json
import os
import re
import select
import socket
import subprocess

import pytest

PROGRAM = os.environ.get("NIXLBENCH", "nixlbench")
TIMEOUT_S = 60


def run(*args):
    return subprocess.run([PROGRAM, "--timeout", "20", *args], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=TIMEOUT_S)


def run_json(*args):
    done = run("--output", "json", *args)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_text_of_one_size_is_the_documented_one():
    done = run("--mode", "p2p", "--size", "1MB", "--iterations", "20")
    assert done.returncode == 0, done.stderr
    time = r"\d+\.\d+ (us|ms|s)"
    for line, pattern in zip(done.stdout.splitlines(), [
            "Transfer size: 1.00 MB", "Iterations: 20", r"Avg bandwidth: \d+\.\d+ [GM]B/s",
            f"Min latency: {time}", f"Max latency: {time}", f"Std dev: {time}"]):
        assert re.fullmatch(pattern, line), line
    assert "1 MB compared, all equal" in done.stdout


def test_several_sizes_make_the_documented_table():
    done = run("--size", "4KB,64KB,1MB", "--iterations", "10")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "=== NIXL Benchmark Results ==="
    assert lines[1].startswith("Backend: ") and len(lines[1]) > len("Backend: ")
    header = lines.index("Buffer Size | Bandwidth | Latency (\u03bcs) | P95 (\u03bcs) | P99 (\u03bcs)")
    rows = [[cell.strip() for cell in line.split("|")] for line in lines[header + 2:header + 5]]
    assert [row[0] for row in rows] == ["4 KB", "64 KB", "1 MB"]
    assert all(float(cell) > 0 for row in rows for cell in row[2:])
    assert "Consistency: 1.07 MB compared, all equal" in lines


@pytest.mark.parametrize("op", ["WRITE", "READ"])
@pytest.mark.parametrize("where", [[], ["--one-process"]])
def test_json_holds_figures_that_fit_together(op, where):
    result = run_json("--size", "64KB", "--iterations", "50", "--op", op, *where)
    assert result["size"] == result["bytes_verified"] == 65536
    assert result["verified"] is True
    assert result["op"] == op and result["iterations"] == 50 and result["warmup"] == 5
    assert result["backend"]
    keys = ["min", "p50", "p95", "p99", "max"]
    times = [result[f"{key}_latency_ms"] for key in keys]
    assert times == sorted(times) and times[0] > 0
    assert times[0] <= result["avg_latency_ms"] <= times[-1]
    rate = result["size"] / result["avg_latency_ms"] / 1e6
    assert result["bandwidth_gbps"] == pytest.approx(rate)
    assert result["cpu_percent"] >= 0 and result["machine"]["cores"] >= 1


def test_json_of_several_sizes_is_an_array():
    results = run_json("--size", "4KB,8KB", "--iterations", "3")
    assert [result["size"] for result in results] == [4096, 8192]


@pytest.mark.parametrize("op", ["write", "read"])
def test_scattered_blocks_arrive_where_they_belong(op):
    result = run_json("--block-size", "4KB", "--block-count", "2000", "--scattered", "--op", op,
                      "--iterations", "3", "--seed", "42")
    assert result["size"] == result["bytes_verified"] == 4096 * 2000
    assert (result["block_count"], result["scattered"]) == (2000, True)


def test_odd_sizes_and_pauses_between_polls():
    result = run_json("--size", "12345", "--iterations", "3", "--poll-us", "100", "--warmup", "0")
    assert result["bytes_verified"] == 12345 and result["poll_us"] == 100


def test_without_verification_it_says_so():
    result = run_json("--size", "4KB", "--iterations", "3", "--no-verify")
    assert result["verified"] is False and result["bytes_verified"] == 0


def test_backend_is_found_in_any_case():
    used = run_json("--size", "4KB", "--iterations", "3")["backend"]
    assert run_json("--size", "4KB", "--iterations", "3", "--backend", used.lower())["backend"] == used


def wait_for_line(stream, wanted, seconds=20):
    """Reads lines until one holds `wanted`."""
    lines = []
    while not lines or wanted not in lines[-1]:
        assert select.select([stream], [], [], seconds)[0], f"after {lines} the target says nothing"
        lines.append(stream.readline())
        assert lines[-1], f"the target ended after {lines}"


# The port is open before the backend is: who connects in between must wait, not fail.
@pytest.mark.parametrize("connect_at", ["the metadata listener", "waiting on port"])
def test_two_hosts_meet_through_the_listener(connect_at):
    port = free_port()
    # Unbuffered: a line that lay in Python's buffer would be hidden from select().
    target = subprocess.Popen([PROGRAM, f"--listen={port}", "--timeout", "20"],
                              stderr=subprocess.PIPE, bufsize=0)
    try:
        wait_for_line(target.stderr, connect_at.encode())
        done = run("--output", "json", "--connect", f"127.0.0.1:{port}", "--size", "64KB",
                   "--iterations", "5", "--op", "READ")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["peers"] == "two hosts" and result["bytes_verified"] == 65536
        _, rest = target.communicate(timeout=20)
        assert target.returncode == 0, rest
    finally:
        target.kill()
        target.communicate()


def test_nobody_listening_is_an_error_and_not_a_wait_for_ever():
    done = subprocess.run([PROGRAM, "--connect", f"127.0.0.1:{free_port()}", "--timeout", "2"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=TIMEOUT_S)
    assert done.returncode == 1 and done.stdout == b"" and done.stderr


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has a GPU")
@pytest.mark.parametrize("side", ["--src-type", "--dst-type"])
def test_without_a_gpu_it_says_so(side):
    done = run(side, "gpu", "--size", "4KB")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no GPU driver" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("code, args, words", [
    (1, ["--backend", "nonsense"], "nonsense"),
    (1, ["--size", "4EB"], "available"),
    (2, ["--size", "4QB"], "4qb"),
    (2, ["--nonsense"], "--nonsense"),
])
def test_what_cannot_be_done_is_said_on_stderr(code, args, words):
    done = run(*args)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr.lower()


def test_help_names_every_documented_option():
    done = run("--help")
    assert done.returncode == 0
    for option in ("--mode", "--size", "--iterations", "--backend", "--output", "--src-type",
                   "--dst-type", "--src-device", "--dst-device"):
        assert option in done.stdout
