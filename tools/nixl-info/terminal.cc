#include "nixl-info/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <string_view>

namespace nixl::info {

namespace {

constexpr size_t kLeastRoom = 20;  // for the last column, however narrow the terminal is

}  // namespace

Terminal::Terminal() {
  if (::isatty(STDOUT_FILENO) == 0) return;
  winsize size{};
  width_ = ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
  const char* term = std::getenv("TERM");
  const char* no_color = std::getenv("NO_COLOR");
  colours_ = (no_color == nullptr || *no_color == '\0') && term != nullptr &&
             std::string_view(term) != "dumb";
}

std::string Terminal::paint(Colour colour, const std::string& text) const {
  if (!colours_ || colour == Colour::NONE || text.empty()) return text;
  const char* code = colour == Colour::GOOD   ? "32"
                     : colour == Colour::BAD  ? "31"
                     : colour == Colour::HINT ? "33"
                                              : "1";
  return "\033[" + std::string(code) + "m" + text + "\033[0m";
}

std::vector<std::string> Terminal::wrapped(const std::string& text, size_t width) {
  if (width == 0 || text.size() <= width) return {text};
  std::vector<std::string> lines(1);
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    const std::string word = text.substr(at, end - at);
    std::string* line = &lines.back();
    if (!line->empty() && line->size() + 1 + word.size() > width) line = &lines.emplace_back();
    *line += (line->empty() ? "" : " ") + word;
    at = end + 1;
  }
  return lines;
}

size_t Terminal::roomFrom(size_t column) const {
  if (width_ == 0) return 0;
  return std::max(kLeastRoom, width_ > column ? width_ - column : 0);
}

void Terminal::pair(const std::string& name, const std::string& value, size_t column,
                    Colour colour) const {
  std::string start = "  " + name;
  start.resize(std::max(start.size() + 2, column), ' ');
  for (const std::string& line : wrapped(value, roomFrom(start.size()))) {
    std::cout << start << paint(colour, line) << '\n';
    start.assign(column, ' ');
  }
}

void Terminal::paragraph(const std::string& text, size_t indent, Colour colour) const {
  for (const std::string& line : wrapped(text, roomFrom(indent)))
    std::cout << std::string(indent, ' ') << paint(colour, line) << '\n';
}

void Terminal::table(const std::vector<std::vector<std::string>>& rows) const {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  size_t before_last = 0;
  for (size_t i = 0; i + 1 < widths.size(); ++i) before_last += widths[i] + 2;
  for (size_t number = 0; number < rows.size(); ++number) {
    const auto& row = rows[number];
    const Colour colour = number == 0 ? Colour::TITLE : Colour::NONE;
    std::string start;
    for (size_t i = 0; i + 1 < row.size(); ++i)
      start += row[i] + std::string(widths[i] - row[i].size() + 2, ' ');
    std::string first = paint(colour, start);
    for (const std::string& line : wrapped(row.back(), roomFrom(before_last))) {
      std::cout << first << paint(colour, line) << '\n';
      first.assign(before_last, ' ');
    }
  }
}

void Terminal::title(const std::string& text) const {
  std::cout << paint(Colour::TITLE, text) << '\n';
}

}  // namespace nixl::info
