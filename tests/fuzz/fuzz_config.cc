// Values of environment variables, of every type. The first byte chooses the variable.
#include "base/config.h"

#include <cerrno>
#include <cstdlib>
#include <deque>
#include <iterator>
#include <string>

#include "fuzz.h"

namespace {

using namespace nixl;
using base::Variable;
using base::VariableType;
using fuzz::require;

constexpr size_t kLongest = 4096;

const Variable kVariables[] = {
    {.name = "NIXL_FUZZ_BOOL", .type = VariableType::BOOL, .default_text = "no", .help = "-"},
    {.name = "NIXL_FUZZ_INT", .type = VariableType::INT, .default_text = "0", .help = "-",
     .minimum = -1000, .maximum = 1000},
    {.name = "NIXL_FUZZ_ANY_INT", .type = VariableType::INT, .default_text = "0", .help = "-",
     .minimum = INT64_MIN},
    {.name = "NIXL_FUZZ_SIZE", .type = VariableType::SIZE, .default_text = "1KB", .help = "-"},
    {.name = "NIXL_FUZZ_DURATION", .type = VariableType::DURATION_US, .default_text = "1ms",
     .help = "-"},
    {.name = "NIXL_FUZZ_STRING", .type = VariableType::STRING, .help = "-"},
    {.name = "NIXL_FUZZ_PATH", .type = VariableType::PATH, .help = "-"},
    {.name = "NIXL_FUZZ_ENUM", .type = VariableType::ENUM, .default_text = "RED", .help = "-",
     .words = {"RED", "GREEN"}},
    {.name = "NIXL_FUZZ_ENDPOINT", .type = VariableType::ENDPOINT, .help = "-"},
    {.name = "NIXL_FUZZ_ENDPOINTS", .type = VariableType::ENDPOINTS, .help = "-"},
    {.name = "NIXL_FUZZ_SECRET", .type = VariableType::INT, .default_text = "0", .help = "-",
     .aliases = {"NIXL_FUZZ_ALIAS"}, .secret = true},
};

// An entry of the environment that is changed in place: setenv() keeps every value it was given.
class Entry {
 public:
  explicit Entry(const std::string& name) : value_(text_ + name.size() + 1) {
    name.copy(text_, name.size());
    value_[-1] = '=';
    putenv(text_);
  }
  Entry(const Entry&) = delete;
  Entry& operator=(const Entry&) = delete;

  void set(std::string_view value) { value_[value.copy(value_, kLongest)] = '\0'; }

 private:
  char text_[kLongest + 64] = {};
  char* value_;
};

// What strtoll() makes of digits with nothing around them.
void tryInt(const std::string& text, const Result<int64_t>& got) {
  char* end = nullptr;
  errno = 0;
  const long long expected = std::strtoll(text.c_str(), &end, 10);
  const bool plain = !text.empty() && (text[0] == '-' || (text[0] >= '0' && text[0] <= '9')) &&
                     end == text.c_str() + text.size();
  if (!plain) return;
  if (errno == ERANGE)
    require(!got.has_value(), "a number beyond 64 bits");
  else
    require(got.has_value() && *got == expected, "digits that mean another number");
}

template <typename T>
void check(const Variable& variable, const Result<T>& got) {
  if (got.has_value()) return;
  const std::string& sentence = got.error().message();
  require(got.error().code() == Errc::INVALID_PARAM, "a value that is refused with another code");
  require(sentence.starts_with(variable.name), "a refusal that does not begin with the name");
  require(sentence.find("; must be ") != std::string::npos, "a refusal that does not say how");
  static std::string secret_refused;  // the first one, with which all others are the same
  if (variable.secret && secret_refused.empty()) secret_refused = sentence;
  require(!variable.secret || sentence == secret_refused, "a secret that is told");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static std::deque<Entry>& entries = *[] {
    base::registerVariables(kVariables);
    auto* all = new std::deque<Entry>;
    for (const Variable& variable : kVariables) all->emplace_back(variable.name);
    return all;
  }();

  fuzz::Input in(data, size);
  const size_t chosen = in.below(std::size(kVariables));
  const Variable& variable = kVariables[chosen];
  const std::string text(in.text().substr(0, kLongest - 1));
  entries[chosen].set(text);
  switch (variable.type) {
    case VariableType::BOOL:
      check(variable, base::configBool(variable.name));
      break;
    case VariableType::INT: {
      const Result<int64_t> got = base::configInt(variable.name);
      check(variable, got);
      if (got.has_value())
        require(*got >= variable.minimum && *got <= variable.maximum, "a number out of its range");
      if (variable.minimum == INT64_MIN) tryInt(text, got);
      break;
    }
    case VariableType::SIZE:
      check(variable, base::configSize(variable.name));
      break;
    case VariableType::DURATION_US: {
      const auto got = base::configDuration(variable.name);
      check(variable, got);
      if (got.has_value()) require(got->count() >= 0, "a time before now");
      break;
    }
    case VariableType::STRING:
    case VariableType::PATH: {
      const Result<std::string> got = base::configString(variable.name);
      require(got.has_value() && *got == text, "a text that is not what was set");
      break;
    }
    case VariableType::ENUM: {
      const Result<std::string> got = base::configEnum(variable.name);
      check(variable, got);
      if (got.has_value()) require(*got == "RED" || *got == "GREEN", "a word of no list");
      break;
    }
    case VariableType::ENDPOINT:
    case VariableType::ENDPOINTS: {
      const Result<std::string> got = base::configEndpoints(variable.name);
      check(variable, got);
      if (got.has_value())  // blanks around it are taken off
        require(text.find(*got) != std::string::npos, "a text that was not set");
      break;
    }
  }
  if (in.byte() % 64 == 1)  // slow: looks at all of them
    for (const base::VariableState& state : base::configStates())
      if (state.name == variable.name && variable.secret)
        require(state.value == "***", "a secret that is shown");
  return 0;
}
