#include "nixlbench/target.h"

#include <strings.h>
#include <time.h>

#include <cctype>
#include <utility>

#include "nixlbench/frames.h"
#include "nixlbench/notification_link.h"
#include "nixlbench/verify.h"

namespace nixl::bench {

using namespace std::chrono_literals;

namespace {

// What the user wrote in any case, as the library spells it: most names, and those that it does not
// list, are in upper case.
std::string spelling(const std::string& written) {
  for (const std::string& name : pluginNames())
    if (::strcasecmp(name.c_str(), written.c_str()) == 0) return name;
  std::string upper = written;
  for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return upper;
}

Role roleIn(const Json& request) {
  return request.at("role") == "source" ? Role::SOURCE : Role::DESTINATION;
}

Json::binary_t toBinary(const std::string& bytes) {
  return Json::binary_t(std::vector<uint8_t>(bytes.begin(), bytes.end()));
}

}  // namespace

std::vector<std::string> chosenBackends(const Options& options) {
  if (options.backend.empty()) return {};
  return {spelling(options.backend)};
}

std::unique_ptr<Agent> makeAgent(const std::string& name, const Options& options) {
  AgentConfig config;
  std::vector<std::string> wanted = chosenBackends(options);
  if (wanted.empty()) wanted = config.backends;
  config.backends.clear();  // one that is missing is an error here, not a warning
  if (options.peers == Peers::LISTEN) {
    config.listen = true;
    config.listen_port = options.port;
  }
  auto agent = std::make_unique<Agent>(name, config);
  for (const std::string& backend : wanted) agent->createBackend(backend);
  return agent;
}

double cpuSeconds() {
  timespec t{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) / 1e9;
}

bool reachesOthers(const Agent& agent) {
  for (const std::string& backend : agent.backends())
    if (agent.backendInfo(backend).remote) return true;
  return false;
}

Target::Target(Agent& agent, std::vector<std::string> backends)
    : agent_(agent), backends_(std::move(backends)) {}

Target::~Target() {
  try {
    if (memory_) agent_.deregisterMemory(memory_);
  } catch (const Error&) {  // the agent ends soon, and with it the registration
  }
}

Json Target::answer(const Json& request) {
  try {
    return handle(request);
  } catch (const Error& e) {
    return {{"error", e.what()}, {"code", static_cast<int>(e.code())}};
  } catch (const std::exception& e) {
    return {{"error", e.what()}, {"code", static_cast<int>(Errc::UNKNOWN)}};
  }
}

Json Target::hello(const Json& request) {
  const Place place{static_cast<MemType>(request.at("type").get<int>()), request.at("device")};
  buffer_ = makeBuffer(place, request.at("bytes"));
  memory_ = agent_.registerMemory({{buffer_->address(), buffer_->size(), place.device, place.type}},
                                  backends_);
  if (request.contains("metadata")) {
    const auto& bytes = request["metadata"].get_binary();
    agent_.loadMetadata({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    return {{"address", buffer_->address()}, {"metadata", toBinary(agent_.metadata())}};
  }
  return {{"address", buffer_->address()}};  // the metadata goes from listener to agent
}

Json Target::handle(const Json& request) {
  const std::string what = request.at("do");
  if (what == "hello") return hello(request);
  if (what == "begin" || what == "end") return {{"cpu_seconds", cpuSeconds()}};
  if (what == kFarewell) return Json::object();
  if (!buffer_) throw Error(Errc::NOT_ALLOWED, "request \"" + what + "\" before \"hello\"");
  if (what == "fill") {
    fill(*buffer_, request.at("bytes"), roleIn(request), request.at("seed"));
    return Json::object();
  }
  if (what == "inspect") {
    const Shape shape{request.at("block"), request.at("count"), request.at("scattered")};
    const uint64_t seed = request.at("seed");
    const auto own = blockOffsets(shape, Side::TARGET, seed);
    const auto source =
        roleIn(request) == Role::SOURCE ? own : blockOffsets(shape, Side::INITIATOR, seed);
    const Inspection seen = inspect(*buffer_, shape.block, own, source, seed);
    Json answer = {{"checksum", seen.checksum}};
    if (seen.difference)
      answer.update({{"offset", seen.difference->offset},
                     {"expected", seen.difference->expected},
                     {"found", seen.difference->found}});
    return answer;
  }
  throw Error(Errc::NOT_SUPPORTED, "request \"" + what + "\" is not known to this nixlbench");
}

bool serveSocket(Target& target, int fd, std::chrono::seconds idle_limit) {
  for (;;) {
    const Deadline deadline = std::chrono::steady_clock::now() + idle_limit;
    const std::optional<Json> request = receiveFrame(fd, deadline);
    if (!request) return false;
    if (request->at("do") == kAlive) continue;
    sendFrame(fd, target.answer(*request), std::chrono::steady_clock::now() + idle_limit);
    if (request->at("do") == kFarewell) return true;
  }
}

}  // namespace nixl::bench
