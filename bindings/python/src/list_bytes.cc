#include "list_bytes.h"

#include <cstring>

namespace nixl::python {
namespace {

constexpr std::string_view kMagic = "nixlSerDes|";

// Items: tag, length as 8 bytes, payload, '|'.
void put(std::string& out, std::string_view tag, const void* payload, uint64_t length) {
  out.append(tag);
  out.append(reinterpret_cast<const char*>(&length), sizeof length);
  out.append(static_cast<const char*>(payload), length);
  out.push_back('|');
}

void putHead(std::string& out, std::string_view kind, MemType type, uint64_t count) {
  out.append(kMagic);
  put(out, "nixlDList", kind.data(), kind.size());
  const int32_t number = static_cast<int32_t>(type);
  put(out, "t", &number, sizeof number);
  put(out, "n", &count, sizeof count);
}

// Reads items in order. After something unexpected nothing is read any more.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) { skip(kMagic); }

  bool good() const { return good_; }
  std::string_view item(std::string_view tag) {
    skip(tag);
    uint64_t length = 0;
    const std::string_view head = take(sizeof length);
    if (!good_) return {};
    std::memcpy(&length, head.data(), sizeof length);
    const std::string_view payload = take(length);
    skip("|");
    return good_ ? payload : std::string_view();
  }
  template <typename T>
  T number(std::string_view tag) {
    const std::string_view payload = item(tag);
    T value{};
    good_ = good_ && payload.size() == sizeof value;
    if (good_) std::memcpy(&value, payload.data(), sizeof value);
    return value;
  }
  void fail() { good_ = false; }

 private:
  std::string_view take(uint64_t n) {
    good_ = good_ && n <= rest_.size();
    if (!good_) return {};
    const std::string_view taken = rest_.substr(0, n);
    rest_.remove_prefix(n);
    return taken;
  }
  void skip(std::string_view expected) {
    if (take(expected.size()) != expected) good_ = false;
  }

  std::string_view rest_;
  bool good_ = true;
};

constexpr std::string_view kBasic = "nixlBDList", kWithMeta = "nixlSDList";
constexpr size_t kRow = 24;  // bytes of address, length, device

// Reads up to the count; the type stays what it was where it cannot be read.
uint64_t readHead(Reader& in, std::string_view kind, MemType& type) {
  if (in.item("nixlDList") != kind) in.fail();
  const auto number = in.number<int32_t>("t");
  if (number < 0 || number >= static_cast<int32_t>(kMemTypes)) in.fail();
  if (in.good()) type = static_cast<MemType>(number);
  return in.number<uint64_t>("n");
}

}  // namespace

std::string writeRows(MemType type, const std::vector<uint64_t>& numbers) {
  std::string out;
  putHead(out, kBasic, type, numbers.size() / 3);
  if (!numbers.empty()) put(out, "", numbers.data(), numbers.size() * sizeof(uint64_t));
  return out;
}

std::string writeRanges(MemType type, const std::vector<MemDescriptor>& ranges) {
  std::string out;
  putHead(out, kWithMeta, type, ranges.size());
  std::string payload;
  for (const MemDescriptor& range : ranges) {
    const uint64_t row[] = {range.address, range.length, range.device};
    payload.assign(reinterpret_cast<const char*>(row), sizeof row);
    payload += range.info;
    put(out, "", payload.data(), payload.size());
  }
  return out;
}

bool readRows(std::string_view bytes, MemType& type, std::vector<uint64_t>& numbers) {
  numbers.clear();
  Reader in(bytes);
  const uint64_t count = readHead(in, kBasic, type);
  if (!in.good() || count == 0) return in.good();
  const std::string_view rows = in.item("");
  if (rows.size() % kRow || rows.size() / kRow != count) in.fail();
  if (!in.good()) return false;
  numbers.resize(rows.size() / sizeof(uint64_t));
  std::memcpy(numbers.data(), rows.data(), rows.size());
  return true;
}

bool readRanges(std::string_view bytes, MemType& type, std::vector<MemDescriptor>& ranges) {
  ranges.clear();
  Reader in(bytes);
  const uint64_t count = readHead(in, kWithMeta, type);
  for (uint64_t i = 0; i < count && in.good(); ++i) {
    const std::string_view payload = in.item("");
    if (payload.size() < kRow) in.fail();
    if (!in.good()) break;
    uint64_t row[3];
    std::memcpy(row, payload.data(), kRow);
    ranges.emplace_back(row[0], row[1], row[2], type, std::string(payload.substr(kRow)));
  }
  if (!in.good()) ranges.clear();
  return in.good();
}

}  // namespace nixl::python
