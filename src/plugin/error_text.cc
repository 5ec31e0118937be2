#include "plugin/error_text.h"

#include <cstring>
#include <exception>

namespace nixl::plugin {

namespace {

// How many bytes of well-formed UTF-8 `text` starts with, for its first character; 0: none.
size_t characterLength(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xC2 && lead <= 0xDF   ? 2
                        : lead >= 0xE0 && lead <= 0xEF ? 3
                        : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                       : 0;
  if (length == 0 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xC0) != 0x80) return 0;
  // Longer than needed, a half of a surrogate pair, or beyond the last character there is.
  if ((lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xED && byte(1) > 0x9F) ||
      (lead == 0xF0 && byte(1) < 0x90) || (lead == 0xF4 && byte(1) > 0x8F))
    return 0;
  return length;
}

}  // namespace

Errc errcOf(int32_t code) {
  const auto known = static_cast<Errc>(code);
  if (known == Errc::UNKNOWN) return known;
  const bool named = std::strcmp(errcName(known), "UNKNOWN") != 0;
  return code < 0 && named ? known : Errc::BACKEND;
}

std::string readable(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const size_t length = characterLength(text);
    const bool control = length == 1 && (text[0] < ' ' || text[0] == '\x7f');
    if (length == 0 || control)
      result += text[0] == '\n' || text[0] == '\t' ? ' ' : '?';
    else
      result += text.substr(0, length);
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return result;
}

Status thrownStatus(std::string_view what) {
  std::string words = "an exception left the plugin, which must not happen";
  try {
    throw;
  } catch (const std::exception& error) {
    words += ": " + readable(error.what());
  } catch (...) {
  }
  return Status(Errc::BACKEND, std::move(words)).within(what);
}

std::string ErrorText::words() const {
  std::string words = readable({text_, strnlen(text_, sizeof text_)});
  if (words.empty()) words = "the plugin gave no reason";
  if (raw_.native_code != 0) words += " (code " + std::to_string(raw_.native_code) + ")";
  return words;
}

Status ErrorText::status(std::string_view what, int32_t code) const {
  std::string sentence = words();
  const Errc errc = errcOf(code);
  if (errc == Errc::BACKEND && code != static_cast<int32_t>(Errc::BACKEND))
    sentence += " (result " + std::to_string(code) + ", which has no meaning)";
  return Status(errc, std::move(sentence)).within(what);
}

}  // namespace nixl::plugin
