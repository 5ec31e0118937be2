#include "nixl-info/facts.h"

#include <condition_variable>
#include <exception>
#include <memory>
#include <thread>
#include <utility>

namespace nixl::info {

void Section::add(Fact fact) {
  const std::lock_guard lock(mutex_);
  facts_.push_back(std::move(fact));
}

std::vector<Fact> Section::facts() const {
  const std::lock_guard lock(mutex_);
  return facts_;
}

namespace {

// One probe under way; its thread may outlive the wait for it.
struct Running {
  explicit Running(const char* name) : section(name) {}
  Section section;
  std::mutex mutex;
  std::condition_variable changed;
  bool ended = false;  // guarded by mutex
};

}  // namespace

std::vector<Gathered> gather(const std::vector<Probe>& probes, std::chrono::milliseconds limit) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  std::vector<std::shared_ptr<Running>> all;
  for (const Probe& probe : probes) {
    auto running = std::make_shared<Running>(probe.section);
    all.push_back(running);
    std::thread([running, look = probe.look] {
      try {
        look(running->section);
      } catch (const std::exception& error) {
        running->section.add("not everything was found out", error.what());
      }
      const std::lock_guard lock(running->mutex);
      running->ended = true;
      running->changed.notify_all();
    }).detach();
  }

  std::vector<Gathered> sections;
  for (const auto& running : all) {
    std::unique_lock lock(running->mutex);
    const bool ended =
        running->changed.wait_until(lock, deadline, [&] { return running->ended; });
    Gathered section{running->section.name(), running->section.facts()};
    if (!ended)
      section.facts.push_back({"not everything was found out",
                               "no answer within " + std::to_string(limit.count()) + " ms",
                               "a file system or a driver may hang: look at dmesg"});
    sections.push_back(std::move(section));
  }
  return sections;
}

nlohmann::ordered_json toJson(const std::vector<Gathered>& sections) {
  nlohmann::ordered_json all = nlohmann::ordered_json::object();
  for (const Gathered& section : sections) {
    nlohmann::ordered_json facts = nlohmann::ordered_json::object();
    for (const Fact& fact : section.facts) {
      std::string name = fact.name;
      for (int number = 2; facts.contains(name); ++number)
        name = fact.name + " (" + std::to_string(number) + ")";
      facts[name] = {{"value", fact.value}};
      if (!fact.hint.empty()) facts[name]["hint"] = fact.hint;
      if (fact.wrong) facts[name]["wrong"] = true;
    }
    all[section.name] = std::move(facts);
  }
  return all;
}

}  // namespace nixl::info
