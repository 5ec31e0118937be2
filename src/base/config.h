// base/config.h - every environment variable: one table, read when asked, never half understood.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace nixl::base {

enum class VariableType {
  BOOL,         // y yes on 1 true enable, n no off 0 false disable; any case
  INT,          // a whole number within [minimum, maximum]
  SIZE,         // bytes: "4096", "64MB"; see base/sizes.h
  DURATION_US,  // "250" (microseconds), "250us", "5ms", "2s"
  STRING,
  PATH,
  ENUM,  // one of `words`, any case
  ENDPOINT,   // "host:port", "[::1]:port"
  ENDPOINTS,  // several, separated by , or ; a scheme may stand before, the port may be left out
};

// A row of the table. What documentation and `nixl-info --config` say comes from here.
struct Variable {
  std::string name;
  VariableType type = VariableType::STRING;
  std::string default_text = {};  // what stands in for the variable where it is not set
  std::string help = {};          // one line, lower case, no full stop
  std::vector<std::string> aliases = {};
  std::vector<std::string> words = {};  // ENUM only: as configEnum() gives them
  int64_t minimum = 0;                  // INT only
  int64_t maximum = INT64_MAX;          // INT only
  bool secret = false;                  // never shown, not in errors either
  std::string owner = {};               // the plugin that reads it; empty: the library

  bool operator==(const Variable&) const = default;
};

// The value in force for a variable. Each call reads the environment: first the variable's name,
// then its aliases; where none is set, the default.
//
// Errors: INVALID_PARAM for a malformed value, with name, value and what is accepted; or when two
// names of one variable are set and differ. A variable that is set but empty is malformed, unless
// it is a STRING or a PATH. Asking for a name that is not in the table, or with the wrong type, is
// a mistake in our code: debug builds abort, others return NOT_FOUND or MISMATCH.
//
// Threads: any; but as with getenv(), not while another thread calls setenv().
Result<bool> configBool(std::string_view name);
Result<int64_t> configInt(std::string_view name);
Result<uint64_t> configSize(std::string_view name);
Result<std::chrono::microseconds> configDuration(std::string_view name);
Result<std::string> configString(std::string_view name);  // of a PATH too
Result<std::string> configPath(std::string_view name);
Result<std::string> configEnum(std::string_view name);  // spelled as in `words`
Result<std::string> configEndpoints(std::string_view name);  // of an ENDPOINT too; as written

// True where the user set the variable or one of its aliases.
bool configIsSet(std::string_view name);

// Adds variables of somebody else, a plugin for example. A name that is there already keeps its
// first meaning; if the second one differs, that is logged.
void registerVariables(std::span<const Variable> variables);

// One variable as it stands: for people to read.
struct VariableState {
  std::string name;
  std::string type;           // "bool", "int", "size", "duration", "string", "path", "A|B|C",
                              // "endpoint", "endpoints"
  std::string default_value;  // as written in the table
  std::string value;          // in force, as written; "***" for a secret that is set
  std::string source;         // "default", or the name it was read from
  std::string help;
  std::vector<std::string> aliases;
  std::string accepted;  // what it may be set to, in words
  std::string problem;   // why the value cannot be used; empty if it can
  std::string owner;     // the plugin that reads it; empty: the library
  bool secret = false;
};

// All of them, sorted by name.
std::vector<VariableState> configStates();

}  // namespace nixl::base
