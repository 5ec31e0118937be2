// Network interfaces, and devices for RDMA.
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>

#include "nixl-info/probes.h"

namespace nixl::info {

namespace {

// name -> "10.0.0.1, fe80::1"
std::map<std::string, std::string> addresses() {
  std::map<std::string, std::string> found;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return found;
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr) continue;
    const int family = entry->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    char text[NI_MAXHOST];
    const socklen_t size = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    if (::getnameinfo(entry->ifa_addr, size, text, sizeof text, nullptr, 0, NI_NUMERICHOST) != 0)
      continue;
    std::string& all = found[entry->ifa_name];
    all += (all.empty() ? "" : ", ") + std::string(text);
  }
  ::freeifaddrs(list);
  return found;
}

std::string driverOf(const Files& files, const std::string& device) {
  std::error_code failure;
  const auto link = std::filesystem::read_symlink(files.at(device + "/driver"), failure);
  return failure ? "" : link.filename().string();
}

std::string speedText(int64_t megabits) {
  if (megabits % 1000 == 0) return std::to_string(megabits / 1000) + " Gb/s";
  return std::to_string(megabits) + " Mb/s";
}

}  // namespace

bool hasRdmaDevices(const Files& files) { return !files.entries("/sys/class/infiniband").empty(); }

void probeNetwork(const Machine& machine, Section& out) {
  const Files& files = machine.files;
  const auto known = machine.saved ? std::map<std::string, std::string>{} : addresses();
  const auto names = files.entries("/sys/class/net");
  for (const std::string& name : names) {
    const std::string folder = "/sys/class/net/" + name;
    if (!files.exists(folder + "/operstate")) continue;  // bonding_masters is a file
    const std::string state = files.textOrWhy(folder + "/operstate");
    std::string text = state;
    if (const auto speed = files.number(folder + "/speed"); speed && *speed > 0)
      text += ", " + speedText(*speed);
    if (const auto mtu = files.number(folder + "/mtu")) text += ", MTU " + std::to_string(*mtu);
    if (const std::string driver = driverOf(files, folder + "/device"); !driver.empty())
      text += ", " + driver;
    const auto address = known.find(name);
    if (address != known.end()) text += ", " + address->second;
    if (state == "down" && name != "lo" && files.exists(folder + "/device"))
      out.note(name, text, "no cable or not configured; for use: ip link set " + name + " up");
    else
      out.add(name, text);
  }
  if (names.empty()) {
    // Without /sys the interfaces that have addresses are still known.
    for (const auto& [name, text] : known) out.add(name, text);
    if (known.empty())
      out.wrong("interfaces", "none",
                "not even lo: no connection is possible; ip link set lo up, or start the container "
                "with a network");
  }
}

void probeRdma(const Machine& machine, Section& out) {
  const Files& files = machine.files;
  const auto devices = files.entries("/sys/class/infiniband");
  if (devices.empty()) {
    out.add("devices", "none");
    return;
  }
  for (const std::string& device : devices) {
    const std::string folder = "/sys/class/infiniband/" + device;
    for (const std::string& port : files.entries(folder + "/ports")) {
      const std::string at = folder + "/ports/" + port;
      const std::string state = files.textOrWhy(at + "/state");  // "4: ACTIVE"
      const std::string text = state + ", " + files.textOrWhy(at + "/rate") + ", " +
                               files.textOrWhy(at + "/link_layer");
      const std::string name = device + ":" + port;
      if (state.find("ACTIVE") != std::string::npos)
        out.add(name, text);
      else
        out.note(name, text,
                 "this port carries nothing until it is ACTIVE: look at the cable, at the subnet "
                 "manager (InfiniBand) or at the interface's address (Ethernet)");
    }
  }
  const auto nodes = files.entries("/dev/infiniband");
  if (nodes.empty()) {
    out.wrong("/dev/infiniband", "not there",
              "programs open the devices there; start the container with --device /dev/infiniband, "
              "or load the module ib_uverbs");
    return;
  }
  std::string denied;
  for (const std::string& node : nodes)
    if (node.rfind("uverbs", 0) == 0 &&
        ::access(files.at("/dev/infiniband/" + node).c_str(), R_OK | W_OK) != 0)
      denied += (denied.empty() ? "" : ", ") + node;
  if (!denied.empty())
    out.wrong("/dev/infiniband", denied + ": Permission denied",
              "let this user read and write them (group rdma, or chmod 666)");
  else
    out.add("/dev/infiniband", "accessible");
}

}  // namespace nixl::info
