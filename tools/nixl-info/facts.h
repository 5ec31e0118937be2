// nixl-info/facts.h - what is found out about a machine: named values, each with a hint where
// something should be done about it.
#pragma once

#include <chrono>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace nixl::info {

struct Fact {
  std::string name, value;
  std::string hint = {};  // what to do about it; empty: nothing
  bool wrong = false;     // what was asked for cannot work like this
};

// The facts of one subject. Filled by one thread while another may read.
class Section {
 public:
  explicit Section(std::string name) : name_(std::move(name)) {}

  void add(Fact fact);
  void add(std::string name, std::string value) { add(Fact{std::move(name), std::move(value)}); }
  // Worth knowing, and with a way to mend it.
  void note(std::string name, std::string value, std::string hint) {
    add(Fact{std::move(name), std::move(value), std::move(hint)});
  }
  // Must be mended for what was asked.
  void wrong(std::string name, std::string value, std::string hint) {
    add(Fact{std::move(name), std::move(value), std::move(hint), true});
  }

  const std::string& name() const { return name_; }
  std::vector<Fact> facts() const;

 private:
  const std::string name_;
  mutable std::mutex mutex_;
  std::vector<Fact> facts_;  // guarded by mutex_
};

struct Probe {
  const char* section;
  std::function<void(Section&)> look;
};

struct Gathered {
  std::string name;
  std::vector<Fact> facts;
};

// Runs every probe in a thread of its own. One that has not ended after `limit` is left behind:
// what it had found is kept, with a fact that says so.
std::vector<Gathered> gather(const std::vector<Probe>& probes, std::chrono::milliseconds limit);

// {"section": {"fact": {"value": "...", "hint": "...", "wrong": true}}}; a name that comes again
// gets a number: "eth0", "eth0 (2)".
nlohmann::ordered_json toJson(const std::vector<Gathered>& sections);

}  // namespace nixl::info
