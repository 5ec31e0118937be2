#include "metadata/frame.h"

#include <algorithm>
#include <cassert>

#include "base/bytes.h"

namespace nixl::metadata {

namespace {

constexpr std::string_view kPrefix = "NIXLCOMM:";
constexpr std::array<std::string_view, 9> kWords = {"LOAD", "SEND", "INVL", "SYNC", "DONE",
                                                    "HELO", "AUTH", "SIGN", "DENY"};
constexpr size_t kWordBytes = 4;
constexpr size_t kFirstPart = 64 << 10;  // what a frame may take before more of it has come
constexpr size_t kKeptBytes = 1 << 20;   // of buffer between frames

}  // namespace

std::optional<Command> parseCommand(std::string_view body) {
  if (!body.starts_with(kPrefix)) return std::nullopt;
  body.remove_prefix(kPrefix.size());
  for (size_t i = 0; i < kWords.size(); ++i)
    if (body.starts_with(kWords[i]))
      return Command{static_cast<Word>(i), body.substr(kWordBytes)};
  return std::nullopt;
}

void appendFrame(std::string& to, Word word, std::string_view payload) {
  char head[8];
  base::storeLittle(head, uint64_t{kPrefix.size() + kWordBytes + payload.size()});
  to.reserve(to.size() + sizeof(head) + kPrefix.size() + kWordBytes + payload.size());
  to.append(head, sizeof(head)).append(kPrefix).append(kWords[static_cast<size_t>(word)]);
  to.append(payload);
}

std::span<char> FrameReader::space() {
  if (head_bytes_ < head_.size()) return std::span(head_).subspan(head_bytes_);
  if (received_ == buffer_.size() && received_ < length_)
    buffer_.resize(std::min<uint64_t>(length_, std::max(kFirstPart, 2 * received_)));
  size_t end = std::min<uint64_t>(buffer_.size(), length_);
  return std::span(buffer_).subspan(received_, end - received_);
}

Status FrameReader::filled(size_t n) {
  assert(n <= space().size());
  if (head_bytes_ == head_.size()) {
    received_ += n;
    return {};
  }
  head_bytes_ += n;
  if (head_bytes_ < head_.size()) return {};
  length_ = base::loadLittle<uint64_t>(head_.data());
  if (length_ > limit_)
    return {Errc::LIMIT, "a message of " + std::to_string(length_) +
                             " bytes is announced; at most " + std::to_string(limit_) +
                             " are accepted"};
  return {};
}

void FrameReader::next() {
  head_bytes_ = 0;
  length_ = 0;
  received_ = 0;
  if (buffer_.size() > kKeptBytes) buffer_ = {};
}

}  // namespace nixl::metadata
