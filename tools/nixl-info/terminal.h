// nixl-info/terminal.h - text for people: fitted to the width of a terminal, coloured where that is
// wanted, and plain, unbroken lines everywhere else.
#pragma once

#include <string>
#include <vector>

namespace nixl::info {

enum class Colour { NONE, GOOD, BAD, HINT, TITLE };

class Terminal {
 public:
  // Of standard output. Lines are broken only on a terminal; colours only there, and not where
  // NO_COLOR is set or TERM is "dumb".
  Terminal();
  Terminal(size_t width, bool colours) : width_(width), colours_(colours) {}

  std::string paint(Colour colour, const std::string& text) const;

  // The text in lines of at most `width` characters; one line where width is 0. Words that are
  // longer stay whole.
  static std::vector<std::string> wrapped(const std::string& text, size_t width);

  // "  name    value", the value broken to stay in its column, which starts at `column`.
  void pair(const std::string& name, const std::string& value, size_t column,
            Colour colour = Colour::NONE) const;

  // A paragraph with every line indented.
  void paragraph(const std::string& text, size_t indent, Colour colour = Colour::NONE) const;

  // Columns as wide as what is in them; the first row is the header, the last column is broken
  // where it does not fit.
  void table(const std::vector<std::vector<std::string>>& rows) const;

  void title(const std::string& text) const;

 private:
  size_t roomFrom(size_t column) const;

  size_t width_ = 0;  // 0: lines have no end
  bool colours_ = false;
};

}  // namespace nixl::info
