"""The short form of the chaos run: 200 cycles with seeds that stay; dev/chaos is the long one."""

import os
import shutil

import pytest

from chaos import Chaos
from processes import run_program


@pytest.fixture(scope="module", autouse=True)
def ucx():
    status, output = run_program(
        "from nixl._api import nixl_agent, nixl_agent_config\n"
        "nixl_agent('probe', nixl_agent_config(backends=[])).create_backend('UCX')"
    )
    if "nixlNotFoundError" in output:
        pytest.skip(f"UCX cannot run here: {output.strip().splitlines()[-1]}")
    assert status == 0, output


@pytest.mark.timeout(300)
@pytest.mark.parametrize("tls, cycles", [(None, 100), ("tcp", 60)], ids=["chosen_by_ucx", "tcp"])
def test_on_one_host(tls, cycles):
    report = Chaos(cycles, seed=20, tls=tls).run()["report"]
    assert report["transfers"] > 5 * cycles
    assert report["writes whose bytes were compared"] > cycles
    assert report["messages"] > 5 * cycles


@pytest.mark.timeout(300)
def test_on_several_hosts():
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc"))):
        pytest.skip("network namespaces need root, and the programs ip and tc (iproute2)")
    try:
        chaos = Chaos(40, seed=20, hosts=True)
    except OSError as error:
        pytest.skip(f"this machine does not allow network namespaces: {error}")
    report = chaos.run()["report"]
    assert report["transfers"] > 200 and report["unplug"] and report["slow"]
