#include "metadata/directory_store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <tuple>
#include <utility>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/random.h"
#include "metadata/queued_store.h"

namespace nixl::metadata {

// In the directory:
//
//   k.NAME      a key; also one that was erased, for ten minutes, so that watches can be told
//   l.NUMBER    a lease
//   state       locked (flock) by who changes something; revision, and up to which revision erased
//               keys are forgotten
//   journal     a transaction that is being applied: the next to lock applies it again
//   new         becomes one of the others by rename
//
// Readers of one key take no lock: rename replaces a file as a whole.
namespace {

using base::ByteReader;
using base::ByteWriter;
using base::Deadline;
using base::Fd;
using std::chrono::milliseconds;

constexpr std::string_view kEntryMagic = "NIXLKEY1";
constexpr std::string_view kLeaseMagic = "NIXLLSE1";
constexpr std::string_view kJournalMagic = "NIXLJRN1";
constexpr uint64_t kKeepErasedNs = 600'000'000'000;
constexpr uint64_t kLargestFile = (uint64_t{1} << 30) + (1 << 20);
constexpr unsigned kCollectEvery = 256;       // changes
constexpr milliseconds kPollInterval(200);    // where inotify is not to be had
constexpr size_t kPlainName = 200, kLongNameStart = 160;

// Unlike the monotonic clock it goes on in suspend, and all processes of a host have the same.
uint64_t bootNs() {
  timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

// A lease of another boot is over. Empty where the kernel does not tell.
const std::string& bootId() {
  static const auto& id = *new std::string(
      base::readFile("/proc/sys/kernel/random/boot_id").value_or(std::string()));
  return id;
}

// Of a key too long for a file name: FNV-1a in 128 bits.
std::string hashOf(std::string_view key) {
  unsigned __int128 hash = (static_cast<unsigned __int128>(0x6c62272e07bb0142) << 64) |
                           0x62b821756295c58d;
  const unsigned __int128 prime = (static_cast<unsigned __int128>(1) << 88) | 0x13b;
  for (char c : key) hash = (hash ^ static_cast<unsigned char>(c)) * prime;
  char text[33];
  std::snprintf(text, sizeof(text), "%016llx%016llx", static_cast<unsigned long long>(hash >> 64),
                static_cast<unsigned long long>(hash));
  return text;
}

struct StoredEntry {
  StoreEntry entry;
  LeaseId lease = 0;
  bool erased = false;
  uint64_t written_ns = 0;  // boot clock
};

std::string sealed(ByteWriter& out) {
  out.u32(base::crc32c(out.view().data(), out.size()));
  return out.take();
}

// What is between magic and checksum.
Result<std::string_view> unsealed(std::string_view file, std::string_view magic) {
  if (!file.starts_with(magic) || file.size() < magic.size() + 4 ||
      base::loadLittle<uint32_t>(file.data() + file.size() - 4) !=
          base::crc32c(file.data(), file.size() - 4))
    return {Errc::MISMATCH, "the file is damaged, or none of a store"};
  return file.substr(magic.size(), file.size() - magic.size() - 4);
}

std::string encodeEntry(const StoredEntry& stored) {
  ByteWriter out;
  out.reserve(64 + stored.entry.key.size() + stored.entry.value.size());
  out.raw(kEntryMagic);
  out.u64(stored.entry.revision);
  out.u64(stored.lease);
  out.u8(stored.erased ? 1 : 0);
  out.u64(stored.written_ns);
  out.bytes(stored.entry.key);
  out.raw(stored.entry.value);
  return sealed(out);
}

Result<StoredEntry> decodeEntry(std::string_view file) {
  NIXL_ASSIGN_OR_RETURN(std::string_view body, unsealed(file, kEntryMagic));
  ByteReader in(body);
  StoredEntry stored;
  stored.entry.revision = in.u64();
  stored.lease = in.u64();
  stored.erased = in.u8() != 0;
  stored.written_ns = in.u64();
  stored.entry.key = in.bytes();
  if (!in.ok()) return {Errc::MISMATCH, "the file is damaged"};
  stored.entry.value = in.view(in.remaining());
  return stored;
}

struct StoredLease {
  uint64_t time_to_live_ns = 0;
  uint64_t ends_ns = 0;  // boot clock
  std::string boot;

  bool over() const { return boot != bootId() || bootNs() >= ends_ns; }
};

std::string encodeLease(const StoredLease& lease) {
  ByteWriter out;
  out.raw(kLeaseMagic);
  out.u64(lease.time_to_live_ns);
  out.u64(lease.ends_ns);
  out.bytes(lease.boot);
  return sealed(out);
}

Result<StoredLease> decodeLease(std::string_view file) {
  NIXL_ASSIGN_OR_RETURN(std::string_view body, unsealed(file, kLeaseMagic));
  ByteReader in(body);
  StoredLease lease;
  lease.time_to_live_ns = in.u64();
  lease.ends_ns = in.u64();
  lease.boot = in.bytes();
  if (!in.ok()) return {Errc::MISMATCH, "the file is damaged"};
  return lease;
}

std::string leaseName(LeaseId id) { return "l." + std::to_string(id); }

class DirectoryEngine final : public StoreEngine {
 public:
  static Result<std::unique_ptr<StoreEngine>> open(const std::string& path) {
    if (path.empty()) return {Errc::INVALID_PARAM, "there is no path"};
    if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST)
      return base::errnoStatus("make directory \"" + path + "\"", errno);
    auto engine = std::make_unique<DirectoryEngine>(path);
    NIXL_ASSIGN_OR_RETURN(engine->state_, Fd::open(path + "/state", O_RDWR | O_CREAT));
    return std::unique_ptr<StoreEngine>(std::move(engine));
  }

  explicit DirectoryEngine(std::string path) : path_(std::move(path)) {}

  StoreFacts facts() const override {
    return {.name = "directory",
            .watch = true,
            .lease = true,
            .transaction = true,
            .between_processes = true,
            .largest_value = uint64_t{1} << 30,
            .largest_key = 64 << 10};
  }

  Result<uint64_t> apply(const StoreTransaction& transaction, Deadline deadline) override {
    NIXL_ASSIGN_OR_RETURN(Locked locked, lock(LOCK_EX, deadline));
    for (const auto& compare : transaction.compare) {
      NIXL_ASSIGN_OR_RETURN(auto found, living(compare.key));
      uint64_t revision = found ? found->entry.revision : 0;
      if (revision != compare.revision)
        return {Errc::MISMATCH, "\"" + compare.key + "\" is at revision " +
                                    std::to_string(revision) + ", not at " +
                                    std::to_string(compare.revision)};
    }
    for (const auto& put : transaction.puts)
      if (put.lease != 0 && isOver(put.lease))
        return {Errc::NOT_FOUND, "put \"" + put.key + "\": its lease is over"};
    std::vector<StoredEntry> changes;
    uint64_t revision = locked.revision + 1, now = bootNs();
    for (const auto& put : transaction.puts)
      changes.push_back({{put.key, put.value, revision}, put.lease, false, now});
    for (const std::string& key : transaction.erases) {
      NIXL_ASSIGN_OR_RETURN(auto found, living(key));
      bool was_put = std::any_of(transaction.puts.begin(), transaction.puts.end(),
                                 [&](const auto& put) { return put.key == key; });
      if (found || was_put) changes.push_back({{key, "", revision}, 0, true, now});
    }
    NIXL_TRY(change(locked, std::move(changes)));
    if (++changes_since_collection_ >= kCollectEvery) collect(locked);
    return revision;
  }

  Result<StoreEntry> get(const std::string& key, Deadline deadline) override {
    // What a transaction that was cut short has left is completed first.
    if (exists("journal")) NIXL_TRY(lock(LOCK_EX, deadline).status());
    NIXL_ASSIGN_OR_RETURN(auto found, living(key));
    if (!found) return {Errc::NOT_FOUND, "no key \"" + key + "\""};
    return std::move(found->entry);
  }

  Result<StorePage> list(const std::string& prefix, const std::string& after, size_t limit,
                         Deadline deadline) override {
    NIXL_ASSIGN_OR_RETURN(Locked locked, lock(LOCK_EX, deadline));
    NIXL_TRY(sweep(locked));
    StorePage page;
    page.revision = locked.revision;
    NIXL_ASSIGN_OR_RETURN(std::vector<StoredEntry> all, entries(prefix));
    std::erase_if(all, [&](const StoredEntry& stored) {
      return stored.erased || (!after.empty() && stored.entry.key <= after);
    });
    std::sort(all.begin(), all.end(),
              [](const auto& a, const auto& b) { return a.entry.key < b.entry.key; });
    bool more = all.size() > limit;
    if (more) all.resize(limit);
    for (StoredEntry& stored : all) page.entries.push_back(std::move(stored.entry));
    if (more) page.next = page.entries.back().key;
    return page;
  }

  Result<LeaseId> lease(milliseconds time_to_live, Deadline deadline) override {
    NIXL_ASSIGN_OR_RETURN(Locked locked, lock(LOCK_EX, deadline));
    LeaseId id = 0;
    while (id == 0 || exists(leaseName(id))) base::randomBytes(&id, sizeof(id));
    NIXL_TRY(writeLease(id, time_to_live));
    return id;
  }

  Status keepAlive(LeaseId id, Deadline deadline) override {
    NIXL_ASSIGN_OR_RETURN(Locked locked, lock(LOCK_EX, deadline));
    Result<StoredLease> lease = readLease(id);
    if (!lease.has_value() || lease->over()) return {Errc::NOT_FOUND, "the lease is over"};
    return writeLease(id, std::chrono::duration_cast<milliseconds>(
                              std::chrono::nanoseconds(lease->time_to_live_ns)));
  }

  Status endLease(LeaseId id, Deadline deadline) override {
    NIXL_ASSIGN_OR_RETURN(Locked locked, lock(LOCK_EX, deadline));
    if (isOver(id)) return {Errc::NOT_FOUND, "the lease is over"};
    NIXL_TRY(writeLease(id, milliseconds(0)));
    return sweep(locked);
  }

  Result<Changes> changesAfter(uint64_t revision, const std::string& prefix,
                               Deadline deadline) override {
    beginNotices();
    NIXL_ASSIGN_OR_RETURN(Locked locked, lock(LOCK_EX, deadline));
    NIXL_TRY(sweep(locked));
    if (revision != 0 && revision < locked.forgotten)
      return {Errc::NOT_FOUND, "changes after revision " + std::to_string(revision) +
                                   " are forgotten; list again, and watch from there"};
    Changes found;
    found.revision = locked.revision;
    if (revision == locked.revision) return found;
    NIXL_ASSIGN_OR_RETURN(std::vector<StoredEntry> all, entries(prefix));
    for (StoredEntry& stored : all)
      if (stored.entry.revision > revision && !(stored.erased && revision == 0))
        found.changes.push_back({stored.erased, std::move(stored.entry)});
    std::sort(found.changes.begin(), found.changes.end(), [](const auto& a, const auto& b) {
      return std::tie(a.entry.revision, a.entry.key) < std::tie(b.entry.revision, b.entry.key);
    });
    return found;
  }

  void interrupt() override { interrupted_.store(true, std::memory_order_relaxed); }

  int changedFd() const override { return notices_.get(); }

  void rest() override {
    alignas(inotify_event) char buffer[4096];
    while (notices_ && read(notices_.get(), buffer, sizeof(buffer)) > 0) {
    }
  }

  Deadline nextLook() override {
    uint64_t now = bootNs(), next = UINT64_MAX;
    for (LeaseId id : leases()) {
      Result<StoredLease> lease = readLease(id);
      if (lease.has_value()) next = std::min(next, lease->over() ? now : lease->ends_ns);
    }
    Deadline at = next == UINT64_MAX
                      ? Deadline::never()
                      : Deadline::after(std::chrono::nanoseconds(next - std::min(next, now)));
    return notices_ ? at : std::min(at, Deadline::after(kPollInterval));
  }

 private:
  // The store's lock, and what `state` holds. Gives it back at its end.
  struct Locked {
    Locked(int its_fd) : fd(its_fd) {}
    Locked(Locked&& other) noexcept
        : fd(std::exchange(other.fd, -1)), revision(other.revision), forgotten(other.forgotten) {}
    Locked& operator=(Locked&&) = delete;
    ~Locked() {
      if (fd >= 0) (void)flock(fd, LOCK_UN);
    }

    int fd;
    uint64_t revision = 0;
    uint64_t forgotten = 0;
  };

  std::string at(const std::string& name) const { return path_ + "/" + name; }
  bool exists(const std::string& name) const { return access(at(name).c_str(), F_OK) == 0; }

  Status remove(const std::string& name) {
    if (unlink(at(name).c_str()) != 0 && errno != ENOENT)
      return base::errnoStatus("remove \"" + at(name) + "\"", errno);
    return {};
  }

  // flock() knows no deadline, so it is asked again and again.
  Result<Locked> lock(int how, Deadline deadline) {
    for (milliseconds pause(1);; pause = std::min(2 * pause, milliseconds(20))) {
      if (flock(state_.get(), how | LOCK_NB) == 0) break;
      if (errno != EWOULDBLOCK && errno != EINTR)
        return base::errnoStatus("lock \"" + at("state") + "\"", errno);
      if (interrupted_.load(std::memory_order_relaxed))
        return {Errc::CANCELED, "the store was closed"};
      if (deadline.expired())
        return {Errc::TIMEOUT, "another process holds the lock of \"" + path_ + "\" for too long"};
      poll(nullptr, 0, std::min<int>(static_cast<int>(pause.count()),
                                     deadline.isNever() ? INT_MAX : deadline.remainingMs()));
    }
    Locked locked(state_.get());
    char bytes[16];
    NIXL_ASSIGN_OR_RETURN(size_t got, readState(bytes, sizeof(bytes)));
    if (got == sizeof(bytes)) {
      locked.revision = base::loadLittle<uint64_t>(bytes);
      locked.forgotten = base::loadLittle<uint64_t>(bytes + 8);
    }
    if (exists("journal")) {
      Result<std::string> journal = base::readFile(at("journal"), 4 * kLargestFile);
      NIXL_TRY(journal.status());
      Status replayed = replay(*journal);
      if (replayed.code() == Errc::MISMATCH)  // the host went down while it was written
        NIXL_LOG_WARN("store {}: a damaged journal is removed", path_);
      else
        NIXL_TRY(std::move(replayed));
      NIXL_TRY(remove("journal"));
    }
    return locked;
  }

  Result<size_t> readState(char* bytes, size_t length) {
    ssize_t got = pread(state_.get(), bytes, length, 0);
    if (got < 0) return base::errnoStatus("read \"" + at("state") + "\"", errno);
    return static_cast<size_t>(got);
  }

  Status writeState(const Locked& locked) {
    char bytes[16];
    base::storeLittle(bytes, locked.revision);
    base::storeLittle(bytes + 8, locked.forgotten);
    return base::pwriteAll(state_.get(), bytes, sizeof(bytes), 0).within(at("state"));
  }

  // With the lock held: there is one file "new".
  Status replace(const std::string& name, std::string_view content) {
    {
      NIXL_ASSIGN_OR_RETURN(Fd fd, Fd::open(at("new"), O_WRONLY | O_CREAT | O_TRUNC));
      NIXL_TRY(base::writeAll(fd.get(), content.data(), content.size()).within(at(name)));
    }
    if (rename(at("new").c_str(), at(name).c_str()) != 0)
      return base::errnoStatus("replace \"" + at(name) + "\"", errno);
    return {};
  }

  // Makes changes, all of them of the next revision, which is counted first: a revision that is
  // skipped does no harm, one that is given twice would.
  Status change(Locked& locked, std::vector<StoredEntry> changes) {
    ++locked.revision;
    NIXL_TRY(writeState(locked));
    if (changes.size() == 1)
      return replace(fileNameOfKey(changes[0].entry.key), encodeEntry(changes[0]));
    if (changes.empty()) return {};
    ByteWriter out;
    out.raw(kJournalMagic);
    for (const StoredEntry& each : changes) {
      std::string file = encodeEntry(each);
      out.u64(file.size());
      out.raw(file);
    }
    std::string journal = sealed(out);
    NIXL_TRY(replace("journal", journal));  // from here on it happens
    NIXL_TRY(replay(journal));
    return remove("journal");
  }

  Status replay(std::string_view journal) {
    NIXL_ASSIGN_OR_RETURN(std::string_view body, unsealed(journal, kJournalMagic));
    ByteReader in(body);
    while (in.remaining() > 0) {
      std::string_view file = in.view(in.u64());
      NIXL_ASSIGN_OR_RETURN(StoredEntry stored, decodeEntry(file));
      NIXL_TRY(replace(fileNameOfKey(stored.entry.key), file));
    }
    return {};
  }

  // The key's file; nothing when there is none. Erased ones too.
  Result<std::optional<StoredEntry>> stored(const std::string& key) {
    Result<std::string> file = base::readFile(at(fileNameOfKey(key)), kLargestFile);
    if (!file.has_value()) {
      if (file.error().code() == Errc::NOT_FOUND) return std::optional<StoredEntry>();
      return std::move(file).error();
    }
    Result<StoredEntry> entry = decodeEntry(*file);
    if (!entry.has_value()) return std::move(entry).error().within(at(fileNameOfKey(key)));
    if (entry->entry.key != key)
      return {Errc::LIMIT, "\"" + key + "\" has the same hash as another long key; rename one"};
    return std::optional<StoredEntry>(*std::move(entry));
  }

  Result<std::optional<StoredEntry>> living(const std::string& key) {
    NIXL_ASSIGN_OR_RETURN(auto found, stored(key));
    if (found && (found->erased || (found->lease != 0 && isOver(found->lease)))) found.reset();
    return found;
  }

  Result<StoredLease> readLease(LeaseId id) {
    NIXL_ASSIGN_OR_RETURN(std::string file, base::readFile(at(leaseName(id))));
    return decodeLease(file);
  }

  bool isOver(LeaseId id) {
    Result<StoredLease> lease = readLease(id);
    return !lease.has_value() || lease->over();
  }

  Status writeLease(LeaseId id, milliseconds time_to_live) {
    StoredLease lease;
    auto longest = std::chrono::duration_cast<milliseconds>(std::chrono::hours(24 * 365 * 100));
    lease.time_to_live_ns = static_cast<uint64_t>(
        std::chrono::nanoseconds(std::min(time_to_live, longest)).count());
    lease.ends_ns = bootNs() + lease.time_to_live_ns;
    lease.boot = bootId();
    return replace(leaseName(id), encodeLease(lease));
  }

  template <typename OnName>
  Status eachFile(OnName on_name) {
    DIR* open = opendir(path_.c_str());
    if (open == nullptr) return base::errnoStatus("list \"" + path_ + "\"", errno);
    std::unique_ptr<DIR, int (*)(DIR*)> directory(open, closedir);
    while (const dirent* file = readdir(open)) on_name(std::string_view(file->d_name));
    return {};
  }

  std::vector<LeaseId> leases() {
    std::vector<LeaseId> found;
    (void)eachFile([&](std::string_view name) {
      if (!name.starts_with("l.")) return;
      LeaseId id = std::strtoull(std::string(name.substr(2)).c_str(), nullptr, 10);
      if (leaseName(id) == name) found.push_back(id);
    });
    return found;
  }

  // All with the prefix, erased ones too, in no order. Damaged files are left out.
  Result<std::vector<StoredEntry>> entries(const std::string& prefix) {
    // Of short keys the name tells the prefix, so that others need not be read.
    std::string start = fileNameOfKey(prefix);
    if (start.size() >= kLongNameStart) start = "k.";
    std::vector<std::string> names;
    NIXL_TRY(eachFile([&](std::string_view name) {
      if (name.starts_with(start)) names.emplace_back(name);
    }));
    std::vector<StoredEntry> found;
    for (const std::string& name : names) {
      Result<std::string> file = base::readFile(at(name), kLargestFile);
      Result<StoredEntry> entry =
          file.has_value() ? decodeEntry(*file) : Result<StoredEntry>(std::move(file).error());
      if (!entry.has_value())
        NIXL_LOG_WARN_EVERY(60, "store {}: {} is left out: {}", path_, name,
                            entry.error().message());
      else if (entry->entry.key.starts_with(prefix) && fileNameOfKey(entry->entry.key) == name)
        found.push_back(*std::move(entry));
    }
    return found;
  }

  // Erases the keys of leases that are over.
  Status sweep(Locked& locked) {
    std::vector<LeaseId> all = leases();
    std::set<LeaseId> living_leases;
    std::vector<LeaseId> over;
    for (LeaseId id : all) {
      if (isOver(id))
        over.push_back(id);
      else
        living_leases.insert(id);
    }
    // Looking at every key is only worth while when a lease has gone, here or elsewhere.
    if (over.empty() && living_leases == swept_leases_) return {};
    NIXL_ASSIGN_OR_RETURN(std::vector<StoredEntry> all_entries, entries(""));
    std::vector<StoredEntry> changes;
    uint64_t revision = locked.revision + 1, now = bootNs();
    for (const StoredEntry& stored : all_entries)
      if (!stored.erased && stored.lease != 0 && !living_leases.contains(stored.lease))
        changes.push_back({{stored.entry.key, "", revision}, 0, true, now});
    if (!changes.empty()) NIXL_TRY(change(locked, std::move(changes)));
    for (LeaseId id : over) NIXL_TRY(remove(leaseName(id)));
    swept_leases_ = std::move(living_leases);
    return {};
  }

  // Removes the files of keys erased long ago.
  void collect(Locked& locked) {
    changes_since_collection_ = 0;
    if (!sweep(locked).ok()) return;
    Result<std::vector<StoredEntry>> all = entries("");
    if (!all.has_value()) return;
    uint64_t now = bootNs();
    std::vector<std::string> old;
    for (const StoredEntry& stored : *all) {
      // A later time than now is of an earlier boot.
      if (!stored.erased || (now >= stored.written_ns && now - stored.written_ns < kKeepErasedNs))
        continue;
      locked.forgotten = std::max(locked.forgotten, stored.entry.revision);
      old.push_back(fileNameOfKey(stored.entry.key));
    }
    if (old.empty() || !writeState(locked).ok()) return;
    for (const std::string& name : old) (void)remove(name);
  }

  void beginNotices() {
    if (notices_tried_) return;
    notices_tried_ = true;
    Fd fd(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
    if (fd && inotify_add_watch(fd.get(), path_.c_str(), IN_MOVED_TO | IN_DELETE) >= 0)
      notices_ = std::move(fd);
    else
      NIXL_LOG_INFO("store {}: {}; looking for changes every {} ms", path_, base::errnoText(errno),
                    kPollInterval.count());
  }

  const std::string path_;
  Fd state_;
  Fd notices_;  // inotify, once somebody watches
  bool notices_tried_ = false;
  std::atomic<bool> interrupted_{false};
  unsigned changes_since_collection_ = 0;
  std::set<LeaseId> swept_leases_;
};

}  // namespace

std::string fileNameOfKey(std::string_view key) {
  std::string name = "k.";
  for (char c : key) {
    bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                    c == '-' || c == '_';
    if (is_plain) {
      name += c;
      continue;
    }
    constexpr char kDigits[] = "0123456789ABCDEF";
    name += '%';
    name += kDigits[static_cast<unsigned char>(c) >> 4];
    name += kDigits[c & 15];
  }
  if (name.size() <= kPlainName) return name;
  return name.substr(0, kLongNameStart) + "~" + hashOf(key);
}

Result<std::unique_ptr<Store>> openDirectoryStore(const std::string& path) {
  NIXL_ASSIGN_OR_RETURN(std::unique_ptr<StoreEngine> engine, DirectoryEngine::open(path));
  return QueuedStore::start(std::move(engine));
}

}  // namespace nixl::metadata
