#include "faults.h"

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <sstream>
#include <thread>
#include <vector>

namespace nixl::fakes::cuda {
namespace {

struct Rule {
  std::string name;
  uint64_t from = 1, to = 1;  // calls, from 1
  Fault fault;
};

struct State {
  std::mutex mutex;
  std::condition_variable freed;
  std::vector<Rule> rules;
  std::map<std::string, uint64_t> calls;
  std::map<std::string, int64_t> counters;
  uint64_t least_us = 0, most_us = 0;
  uint64_t generation = 0;  // of clearFaults()
  std::mt19937_64 random{numberOf("NIXL_FAKE_CUDA_SEED", 1)};
};

State& state();

// NAME@N=CODE, NAME@N+=CODE (from then on), NAME@N=CODE! (and the device is lost), copy@N=stuck
bool parse(const std::string& text, Rule* rule) {
  const size_t at = text.find('@'), equals = text.find('=', at);
  if (at == std::string::npos || equals == std::string::npos || at == 0) return false;
  rule->name = text.substr(0, at);
  std::string number = text.substr(at + 1, equals - at - 1), what = text.substr(equals + 1);
  const bool onwards = !number.empty() && number.back() == '+';
  if (onwards) number.pop_back();
  char* end = nullptr;
  rule->from = std::strtoull(number.c_str(), &end, 10);
  if (number.empty() || *end != '\0' || rule->from == 0) return false;
  rule->to = onwards ? UINT64_MAX : rule->from;
  if (what == "stuck") {
    rule->fault.stuck = true;
    return true;
  }
  if (!what.empty() && what.back() == '!') {
    rule->fault.lost = true;
    what.pop_back();
  }
  rule->fault.code = static_cast<int>(std::strtol(what.c_str(), &end, 10));
  return !what.empty() && *end == '\0' && rule->fault.code > 0;
}

bool parseAll(const char* faults, const char* delay, State& s) {
  std::vector<Rule> rules;
  std::stringstream words(faults != nullptr ? faults : "");
  for (std::string word; std::getline(words, word, ',');) {
    if (word.empty()) continue;
    if (!parse(word, &rules.emplace_back())) {
      std::fprintf(stderr, "NIXL_FAKE_CUDA_FAULTS: \"%s\" is no rule\n", word.c_str());
      return false;
    }
  }
  uint64_t least = 0, most = 0;
  if (delay != nullptr && *delay != '\0') {
    char* end = nullptr;
    least = most = std::strtoull(delay, &end, 10);
    if (*end == '-') most = std::strtoull(end + 1, &end, 10);
    if (*end != '\0' || most < least) {
      std::fprintf(stderr, "NIXL_FAKE_CUDA_DELAY_US: \"%s\" is no delay\n", delay);
      return false;
    }
  }
  s.rules = std::move(rules);
  s.calls.clear();
  s.least_us = least;
  s.most_us = most;
  return true;
}

State& state() {
  static State& only = [&]() -> State& {
    auto& made = *new State;
    // Whoever misspells a rule would believe that the fault was handled.
    if (!parseAll(std::getenv("NIXL_FAKE_CUDA_FAULTS"), std::getenv("NIXL_FAKE_CUDA_DELAY_US"),
                  made))
      std::abort();
    return made;
  }();
  return only;
}

}  // namespace

bool configure(const char* faults, const char* delay_us) {
  State& s = state();
  std::lock_guard lock(s.mutex);
  return parseAll(faults, delay_us, s);
}

void clearFaults() {
  State& s = state();
  {
    std::lock_guard lock(s.mutex);
    s.rules.clear();
    s.calls.clear();
    s.least_us = s.most_us = 0;
    ++s.generation;
  }
  s.freed.notify_all();
}

Fault countCall(const char* name) {
  State& s = state();
  std::lock_guard lock(s.mutex);
  const uint64_t number = ++s.calls[name];
  for (const Rule& rule : s.rules)
    if (number >= rule.from && number <= rule.to && rule.name == name) return rule.fault;
  return {};
}

uint64_t calls(const std::string& name) {
  State& s = state();
  std::lock_guard lock(s.mutex);
  if (auto found = s.counters.find(name); found != s.counters.end())
    return static_cast<uint64_t>(found->second);
  auto found = s.calls.find(name);
  return found == s.calls.end() ? 0 : found->second;
}

void addTo(const char* name, int64_t change) {
  State& s = state();
  std::lock_guard lock(s.mutex);
  s.counters[name] += change;
}

void pauseBeforeCopy() {
  State& s = state();
  uint64_t us = 0;
  {
    std::lock_guard lock(s.mutex);
    us = s.most_us == 0 ? 0
                        : std::uniform_int_distribution<uint64_t>(s.least_us, s.most_us)(s.random);
  }
  if (us != 0) std::this_thread::sleep_for(std::chrono::microseconds(us));
}

void waitWhileStuck() {
  State& s = state();
  std::unique_lock lock(s.mutex);
  const uint64_t now = s.generation;
  s.freed.wait(lock, [&] { return s.generation != now; });
}

uint64_t numberOf(const char* variable, uint64_t fallback) {
  const char* text = std::getenv(variable);
  if (text == nullptr || *text == '\0') return fallback;
  char* end = nullptr;
  uint64_t value = std::strtoull(text, &end, 10);
  if (*end == 'M') value <<= 20;
  if (*end == 'G') value <<= 30;
  return value;
}

}  // namespace nixl::fakes::cuda
