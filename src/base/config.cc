#include "base/config.h"

#include <algorithm>
#include <cassert>
#include <charconv>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <optional>
#include <variant>

#include "base/log.h"
#include "base/mutex.h"
#include "base/sizes.h"

namespace nixl::base {

namespace {

// The variables of the library itself. A backend's own are in its options; it adds what it reads
// from the environment with registerVariables().
const std::vector<Variable>& builtinVariables() {
  using enum VariableType;
  static const auto& variables = *new std::vector<Variable>{
      // clang-format off
      {.name = "NIXL_LOG_LEVEL", .type = ENUM, .default_text = "WARN",
       .help = "the least severe messages that are written to stderr",
       .words = {"TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"}},
      {.name = "NIXL_PLUGIN_DIR", .type = PATH,
       .help = "where plugins are looked for first; empty: only where nixl is installed"},
      {.name = "NIXL_INLINE_US", .type = INT, .default_text = "250",
       .help = "a transfer predicted to take fewer microseconds is done by whoever posts it",
       .maximum = 1'000'000},
      {.name = "NIXL_AUTO_LANES", .type = BOOL, .default_text = "true",
       .help = "let faster paths stand in for the backend that was asked for"},
      {.name = "NIXL_TELEMETRY_ENABLE", .type = BOOL, .default_text = "false",
       .help = "count and time what agents do",
       .aliases = {"NIXL_ENABLE_TELEMETRY"}},
      {.name = "NIXL_NOTIF_LIMIT", .type = SIZE, .default_text = "64MB",
       .help = "unread notification bytes kept per agent"},
      {.name = "NIXL_LISTEN_ADDRESS", .type = STRING,
       .help = "addresses that an agent's listener binds, separated by commas; empty: all of them"},
      {.name = "NIXL_LISTEN_CONNECTIONS", .type = INT, .default_text = "1024",
       .help = "connections that an agent's listener keeps; then unused ones are closed",
       .minimum = 1, .maximum = 1'000'000},
      {.name = "NIXL_LISTEN_STRANGERS", .type = INT, .default_text = "256",
       .help = "of these, at most so many from one address of peers that are not known yet",
       .minimum = 1, .maximum = 1'000'000},
      {.name = "NIXL_LISTEN_MESSAGE_LIMIT", .type = SIZE, .default_text = "1GB",
       .help = "the longest metadata that is accepted over a connection"},
      {.name = "NIXL_GREETING_TIMEOUT_MS", .type = INT, .default_text = "5000",
       .help = "milliseconds in which the other end of a connection must have said who it is",
       .minimum = 1, .maximum = INT_MAX},
      {.name = "NIXL_AUTH_KEY_FILE", .type = PATH,
       .help = "file with a key that both ends of a metadata connection must have; empty: none"},
      {.name = "NIXL_TLS_CERT_FILE", .type = PATH,
       .help = "this host's certificate for metadata connections, as PEM; empty: none"},
      {.name = "NIXL_TLS_KEY_FILE", .type = PATH,
       .help = "the private key of NIXL_TLS_CERT_FILE, as PEM"},
      {.name = "NIXL_TLS_CA_FILE", .type = PATH,
       .help = "authorities that peers' certificates must be signed by, as PEM"},
      {.name = "NIXL_TLS_CHECK_NAME", .type = BOOL, .default_text = "true",
       .help = "whether a listener's certificate must hold the address or name connected to"},
      {.name = "NIXL_ETCD_ENDPOINTS", .type = ENDPOINTS,
       .help = "etcd servers that keep metadata"},
      {.name = "NIXL_TCPSTORE_ENDPOINT", .type = ENDPOINT,
       .help = "a PyTorch TCPStore that keeps metadata; not together with NIXL_ETCD_ENDPOINTS"},
      {.name = "NIXL_ETCD_NAMESPACE", .type = STRING, .default_text = "/nixl/agents/",
       .help = "what the etcd keys of agents begin with"},
      {.name = "NIXL_ETCD_PREFIX", .type = STRING, .default_text = "/nixl",
       .help = "what the etcd keys of nixl.distributed begin with"},
      {.name = "NIXL_STALL_MS", .type = INT, .default_text = "30000",
       .help = "a transfer that moves no byte for so many milliseconds is STALLED; 0: never",
       .maximum = INT_MAX},
      {.name = "NIXL_QUIESCE_MS", .type = INT, .default_text = "1000",
       .help = "milliseconds that deregistering memory waits for peers to let go of it",
       .maximum = INT_MAX},
      {.name = "NIXL_CONNECT_TIMEOUT_MS", .type = INT, .default_text = "10000",
       .help = "milliseconds after which an attempt to reach a peer is given up",
       .minimum = 1, .maximum = INT_MAX},
      {.name = "NIXL_STORE", .type = STRING,
       .help = "where metadata is kept: memory:, dir:PATH; empty: nowhere"},
      // clang-format on
  };
  return variables;
}

// Built while the library loads, so that a child which forks later never finds it half built.
[[maybe_unused]] const bool kBuiltinReady = !builtinVariables().empty();

// Variables that were registered. Entries stay where they are for ever: pointers to them are
// handed out. A leaf lock.
struct Registered {
  Mutex mutex;
  std::deque<Variable> variables NIXL_GUARDED_BY(mutex);
};

Registered& registered() {
  static auto& instance = *new Registered;
  return instance;
}

const Variable* find(std::string_view name) {
  for (const Variable& variable : builtinVariables())
    if (variable.name == name) return &variable;
  Registered& others = registered();
  MutexLock lock(others.mutex);
  for (const Variable& variable : others.variables)
    if (variable.name == name) return &variable;
  return nullptr;
}

// A mistake in our code, not of the user: stops a debug build where it happens.
Status mistake(Errc code, std::string what) {
#ifndef NDEBUG
  std::fprintf(stderr, "nixl: %s\n", what.c_str());
  std::abort();
#endif
  return {code, std::move(what)};
}

const char* typeName(VariableType type) {
  switch (type) {
    case VariableType::BOOL:
      return "bool";
    case VariableType::INT:
      return "int";
    case VariableType::SIZE:
      return "size";
    case VariableType::DURATION_US:
      return "duration";
    case VariableType::STRING:
      return "string";
    case VariableType::PATH:
      return "path";
    case VariableType::ENUM:
      return "enum";
    case VariableType::ENDPOINT:
      return "endpoint";
    case VariableType::ENDPOINTS:
      return "endpoints";
  }
  return "?";
}

std::string joined(const std::vector<std::string>& words, std::string_view between,
                   std::string_view before_last) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) {
    if (i > 0) text += i + 1 == words.size() ? before_last : between;
    text += words[i];
  }
  return text;
}

std::string accepted(const Variable& variable) {
  switch (variable.type) {
    case VariableType::BOOL:
      return "y, yes, on, 1, true, enable, n, no, off, 0, false or disable";
    case VariableType::INT:
      if (variable.maximum == INT64_MAX)
        return "a whole number of at least " + std::to_string(variable.minimum);
      return "a whole number from " + std::to_string(variable.minimum) + " to " +
             std::to_string(variable.maximum);
    case VariableType::SIZE:
      return "a number of bytes, such as 4096, 64KB or 1.5GB";
    case VariableType::DURATION_US:
      return "a time, such as 250us, 5ms or 2s";
    case VariableType::STRING:
    case VariableType::PATH:
      return "any text";
    case VariableType::ENUM:
      return joined(variable.words, ", ", " or ");
    case VariableType::ENDPOINT:
      return "a host and a port, such as store-0:29500 or [::1]:29500";
    case VariableType::ENDPOINTS:
      return "hosts with ports, such as http://etcd-0:2379,etcd-1:2379";
  }
  return "";
}

std::string lowered(std::string_view text) {
  std::string lower(text);
  for (char& c : lower)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return lower;
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpaces = " \t\r\n";
  size_t begin = text.find_first_not_of(kSpaces);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpaces) - begin + 1);
}

std::optional<bool> parseBool(std::string_view text) {
  std::string word = lowered(text);
  for (const char* yes : {"y", "yes", "on", "1", "true", "enable"})
    if (word == yes) return true;
  for (const char* no : {"n", "no", "off", "0", "false", "disable"})
    if (word == no) return false;
  return std::nullopt;
}

// The number that the text begins with; takes it off.
std::optional<int64_t> takeInt(std::string_view& text) {
  int64_t value;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return std::nullopt;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return value;
}

// Microseconds.
std::optional<int64_t> parseDuration(std::string_view text) {
  std::optional<int64_t> value = takeInt(text);
  if (!value || *value < 0) return std::nullopt;
  std::string unit = lowered(trimmed(text));
  int64_t scale;
  if (unit.empty() || unit == "us")
    scale = 1;
  else if (unit == "ms")
    scale = 1'000;
  else if (unit == "s")
    scale = 1'000'000;
  else
    return std::nullopt;
  int64_t microseconds;
  if (__builtin_mul_overflow(*value, scale, &microseconds)) return std::nullopt;
  return microseconds;
}

// "host:port", the last colon being the one; an IPv6 address may stand in brackets.
bool isEndpoint(std::string_view text, bool port_needed) {
  for (char c : text)
    if (c <= ' ' || c == 0x7f || c == '/' || c == ',' || c == ';') return false;
  if (text.starts_with('[') && text.ends_with(']')) return !port_needed && text.size() > 2;
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return !port_needed && !text.empty();
  const std::string_view digits = text.substr(colon + 1);
  unsigned port = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  return colon > 0 && error == std::errc() && end == digits.data() + digits.size() && port >= 1 &&
         port <= 65535;
}

bool areEndpoints(std::string_view list) {
  for (;;) {
    const size_t end = std::min(list.find_first_of(",;"), list.size());
    std::string_view one = trimmed(list.substr(0, end));
    for (std::string_view scheme : {"http://", "https://"})
      if (lowered(one.substr(0, scheme.size())) == scheme) {
        one.remove_prefix(scheme.size());
        break;
      }
    if (one.ends_with('/')) one.remove_suffix(1);
    if (!isEndpoint(one, false)) return false;
    if (end == list.size()) return true;
    list.remove_prefix(end + 1);
  }
}

// What a text means. INT and DURATION_US are int64_t, SIZE is uint64_t.
using Value = std::variant<bool, int64_t, uint64_t, std::string>;

std::optional<Value> parse(const Variable& variable, std::string_view text) {
  std::string_view word = trimmed(text);
  switch (variable.type) {
    case VariableType::BOOL:
      if (auto value = parseBool(word)) return *value;
      return std::nullopt;
    case VariableType::INT: {
      std::optional<int64_t> value = takeInt(word);
      if (!value || !word.empty() || *value < variable.minimum || *value > variable.maximum)
        return std::nullopt;
      return *value;
    }
    case VariableType::SIZE:
      if (auto value = parseSize(word)) return *value;
      return std::nullopt;
    case VariableType::DURATION_US:
      if (auto value = parseDuration(word)) return *value;
      return std::nullopt;
    case VariableType::STRING:
    case VariableType::PATH:
      return std::string(text);
    case VariableType::ENUM:
      for (const std::string& known : variable.words)
        if (lowered(known) == lowered(word)) return known;
      return std::nullopt;
    case VariableType::ENDPOINT:
      if (isEndpoint(word, true)) return std::string(word);
      return std::nullopt;
    case VariableType::ENDPOINTS:
      if (areEndpoints(word)) return std::string(word);
      return std::nullopt;
  }
  return std::nullopt;
}

bool mayBeUnset(const Variable& variable) {
  return variable.type == VariableType::ENDPOINT || variable.type == VariableType::ENDPOINTS;
}

// A name under which a variable is set, and what it is set to.
struct Setting {
  std::string name;
  std::string text;
};

// The variable's own name comes first.
std::vector<Setting> settingsOf(const Variable& variable) {
  std::vector<Setting> settings;
  if (const char* text = std::getenv(variable.name.c_str()))
    settings.push_back({variable.name, text});
  for (const std::string& alias : variable.aliases)
    if (const char* text = std::getenv(alias.c_str())) settings.push_back({alias, text});
  return settings;
}

std::string shown(const Variable& variable, const std::string& text) {
  return variable.secret ? "***" : text;
}

Result<Value> valueOf(const Variable& variable, const std::vector<Setting>& settings) {
  if (settings.empty()) {
    if (variable.default_text.empty() && mayBeUnset(variable)) return std::string();
    if (auto value = parse(variable, variable.default_text)) return std::move(*value);
    return mistake(Errc::MISMATCH, "the default of " + variable.name + " is \"" +
                                       variable.default_text + "\"; must be " + accepted(variable));
  }

  std::optional<Value> found;
  for (const Setting& setting : settings) {
    std::optional<Value> value = parse(variable, setting.text);
    if (!value)
      return {Errc::INVALID_PARAM, setting.name + " is \"" + shown(variable, setting.text) +
                                       "\"; must be " + accepted(variable)};
    if (found && *found != *value)
      return {Errc::INVALID_PARAM, settings[0].name + " is \"" + shown(variable, settings[0].text) +
                                       "\" and " + setting.name + " is \"" +
                                       shown(variable, setting.text) +
                                       "\", which are two names of one setting; unset one of them"};
    if (!found) found = std::move(value);
  }
  return std::move(*found);
}

// T: how valueOf() gives the variable's type.
template <typename T>
Result<T> read(std::string_view name, std::initializer_list<VariableType> types) {
  const Variable* variable = find(name);
  if (!variable)
    return mistake(Errc::NOT_FOUND, "the environment variable " + std::string(name) +
                                        " is not in the table of " +
                                        "base/config.cc, and nobody has registered it");
  if (std::find(types.begin(), types.end(), variable->type) == types.end())
    return mistake(Errc::MISMATCH, "the environment variable " + variable->name + " has type " +
                                       typeName(variable->type) + " and was read as " +
                                       typeName(*types.begin()));
  NIXL_ASSIGN_OR_RETURN(Value value, valueOf(*variable, settingsOf(*variable)));
  return std::get<T>(std::move(value));
}

}  // namespace

Result<bool> configBool(std::string_view name) { return read<bool>(name, {VariableType::BOOL}); }

Result<int64_t> configInt(std::string_view name) {
  return read<int64_t>(name, {VariableType::INT});
}

Result<uint64_t> configSize(std::string_view name) {
  return read<uint64_t>(name, {VariableType::SIZE});
}

Result<std::chrono::microseconds> configDuration(std::string_view name) {
  NIXL_ASSIGN_OR_RETURN(int64_t us, read<int64_t>(name, {VariableType::DURATION_US}));
  return std::chrono::microseconds(us);
}

Result<std::string> configString(std::string_view name) {
  return read<std::string>(name, {VariableType::STRING, VariableType::PATH});
}

Result<std::string> configPath(std::string_view name) {
  return read<std::string>(name, {VariableType::PATH});
}

Result<std::string> configEnum(std::string_view name) {
  return read<std::string>(name, {VariableType::ENUM});
}

Result<std::string> configEndpoints(std::string_view name) {
  return read<std::string>(name, {VariableType::ENDPOINTS, VariableType::ENDPOINT});
}

bool configIsSet(std::string_view name) {
  const Variable* variable = find(name);
  return variable && !settingsOf(*variable).empty();
}

void registerVariables(std::span<const Variable> variables) {
  for (const Variable& variable : variables) {
    const Variable* known = find(variable.name);
    if (!known) {
      Registered& others = registered();
      MutexLock lock(others.mutex);
      others.variables.push_back(variable);
    } else if (*known != variable) {
      NIXL_LOG_WARN(
          "the environment variable {} was registered twice with different meanings; "
          "the first one holds: {}",
          known->name, known->help);
    }
  }
}

std::vector<VariableState> configStates() {
  std::vector<const Variable*> variables;
  for (const Variable& variable : builtinVariables()) variables.push_back(&variable);
  {
    Registered& others = registered();
    MutexLock lock(others.mutex);
    for (const Variable& variable : others.variables) variables.push_back(&variable);
  }
  std::sort(variables.begin(), variables.end(),
            [](const Variable* a, const Variable* b) { return a->name < b->name; });

  std::vector<VariableState> states;
  for (const Variable* variable : variables) {
    std::vector<Setting> settings = settingsOf(*variable);
    Result<Value> value = valueOf(*variable, settings);
    VariableState state;
    state.name = variable->name;
    state.type = variable->type == VariableType::ENUM ? joined(variable->words, "|", "|")
                                                      : typeName(variable->type);
    state.default_value = variable->default_text;
    state.value = settings.empty() ? variable->default_text : shown(*variable, settings[0].text);
    state.source = settings.empty() ? "default" : settings[0].name;
    state.help = variable->help;
    state.aliases = variable->aliases;
    state.accepted = accepted(*variable);
    state.owner = variable->owner;
    state.secret = variable->secret;
    if (!value.has_value()) state.problem = value.error().message();
    states.push_back(std::move(state));
  }
  return states;
}

}  // namespace nixl::base
