"""Environment variables that cannot be understood are errors when an agent is made."""

import pytest

from nixl._api import nixl_agent, nixl_agent_config


def make(name="a"):
    nixl_agent(name, nixl_agent_config(backends=["LOOPBACK"])).close()


@pytest.mark.parametrize(
    "value",
    [
        "http://etcd-server:2379",
        "localhost:2379,localhost:2380",
        "https://a:1;http://b:2",
        "http://[::1]:2379/",
        "etcd-0",
        "http://etcd-0",
        " 10.0.0.1:2379 , 10.0.0.2:2379 ",
    ],
)
def test_etcd_endpoints_may_have_a_scheme_and_lack_a_port(monkeypatch, value):
    monkeypatch.setenv("NIXL_ETCD_ENDPOINTS", value)
    make()


@pytest.mark.parametrize(
    "value",
    ["", " ", ",", "a:1,,b:2", "http://", "ftp://a:1", "a:http", "a:0", "a:65536", "a:-1", ":2379",
     "a b:1", "http://a:1/path"],
)  # fmt: skip
def test_other_etcd_endpoints_are_an_error(monkeypatch, value):
    monkeypatch.setenv("NIXL_ETCD_ENDPOINTS", value)
    with pytest.raises(RuntimeError, match="NIXL_ETCD_ENDPOINTS.*must be hosts with ports"):
        make()


@pytest.mark.parametrize("value", ["127.0.0.1:29500", "store-0:1", "::1:80", "[::1]:80"])
def test_a_store_has_a_host_and_a_port(monkeypatch, value):
    monkeypatch.setenv("NIXL_TCPSTORE_ENDPOINT", value)
    make()


@pytest.mark.parametrize(
    "value", ["", "x", "h:", ":1", "h:abc", "h:99999", "h:0", "h:-1", "h:+1", "h: 1", "h:1x"]
)
def test_other_stores_are_an_error(monkeypatch, value):
    monkeypatch.setenv("NIXL_TCPSTORE_ENDPOINT", value)
    with pytest.raises(RuntimeError, match="NIXL_TCPSTORE_ENDPOINT.*must be a host and a port"):
        make()


def test_two_places_for_metadata_are_an_error(monkeypatch):
    monkeypatch.setenv("NIXL_ETCD_ENDPOINTS", "a:1")
    monkeypatch.setenv("NIXL_TCPSTORE_ENDPOINT", "b:2")
    with pytest.raises(RuntimeError, match="both set.*unset one"):
        make()
