#include "nixl-info/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <sstream>

namespace nixl::info {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMostText = 1 << 20;

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

// errno where it cannot be read, else 0. Never blocks: a pipe or a device gives nothing.
int readFile(const std::string& path, std::string& text) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return errno;
  int failure = 0;
  char buffer[4096];
  while (text.size() < kMostText) {
    const ssize_t got = ::read(fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) failure = errno;
    if (got <= 0) break;
    text.append(buffer, static_cast<size_t>(got));
  }
  ::close(fd);
  return failure;
}

}  // namespace

bool Files::exists(const std::string& path) const {
  std::error_code ignored;
  return fs::exists(at(path), ignored);
}

std::optional<std::string> Files::text(const std::string& path) const {
  std::string text;
  if (readFile(at(path), text) != 0) return std::nullopt;
  return trimmed(text);
}

std::string Files::textOrWhy(const std::string& path) const {
  std::string text;
  const int failure = readFile(at(path), text);
  if (failure == ENOENT || failure == ENOTDIR) return "not there";
  if (failure != 0) return std::string("cannot be read: ") + std::strerror(failure);
  return trimmed(text);
}

std::optional<int64_t> Files::number(const std::string& path) const {
  const auto words = text(path);
  if (!words) return std::nullopt;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(words->data(), words->data() + words->size(), value);
  if (error != std::errc()) return std::nullopt;
  return value;
}

std::vector<std::string> Files::entries(const std::string& path) const {
  std::vector<std::string> names;
  std::error_code failure;
  for (fs::directory_iterator entry(at(path), failure), end; !failure && entry != end;
       entry.increment(failure))
    names.push_back(entry->path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::optional<std::string> Files::valueOf(const std::string& text, const std::string& key) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(key, 0) != 0) continue;
    const size_t mark = line.find_first_not_of(" \t", key.size());
    if (mark == std::string::npos || (line[mark] != ':' && line[mark] != '=')) continue;
    std::string value = trimmed(line.substr(mark + 1));
    if (value.size() >= 2 && value.front() == '"' && value.back() == '"')
      value = value.substr(1, value.size() - 2);
    return value;
  }
  return std::nullopt;
}

std::vector<std::string> Files::cgroupLimits(const std::string& file, const std::string& v1) const {
  std::vector<std::string> limits;
  const auto look = [&](const fs::path& folder, const std::string& name, fs::path inside) {
    // From this process's group up to the root: each may be tighter than the one below.
    for (;;) {
      if (const auto limit = text((folder / inside.relative_path() / name).string()))
        limits.push_back(*limit);
      if (inside.empty() || inside == inside.root_path()) break;
      inside = inside.parent_path();
    }
  };
  const size_t slash = v1.find('/');
  const std::string controller = v1.substr(0, slash);
  std::istringstream lines(text("/proc/self/cgroup").value_or(""));
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string inside = line.substr(second + 1);
    if (controllers == ",,")
      look("/sys/fs/cgroup", file, inside);
    else if (controllers.find("," + controller + ",") != std::string::npos)
      look("/sys/fs/cgroup/" + controller, v1.substr(slash + 1), inside);
  }
  return limits;
}

}  // namespace nixl::info
