// plugins/loopback/loopback.cc - copies inside one agent. The smallest whole engine: read it first.
//
// What an engine is asked to do, and when it may call back, is written in nixl/plugin_abi.h; that
// this is a class, and may throw, is the work of nixl/backend.h.

#include <algorithm>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>

#include "nixl/backend.h"

namespace {

using nixl::Errc;
using nixl::MemType;
using nixl::OpType;

// ---- what it says of itself -----------------------------------------------------------------

constexpr uint64_t kLongestDelayUs = 60'000'000;

constexpr nixl_option kOptions[] = {
    {"delay_us", "0", "microseconds that a transfer waits before it starts; for tests"},
    {nullptr, nullptr, nullptr},
};

nixl_facts loopbackFacts() {
  auto f = nixl::backendFacts({MemType::DRAM}, NIXL_ENGINE_LOCAL | NIXL_ENGINE_NOTIF);
  // post() copies, and must not keep its caller for long: the library hands over a slice at a time.
  f.max_piece = 256 << 10;
  f.max_slice = 64;
  return f;
}

nixl::BackendDescription description() {
  return {"LOOPBACK", "1.0", "copies inside one agent", kOptions, loopbackFacts()};
}

std::string whyUnusable() { return ""; }  // it runs everywhere

// ---- how it works ---------------------------------------------------------------------------

// As plugin_abi.h counts time.
uint64_t nowNs() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::nanoseconds(now).count());
}

// A prepared transfer. The arrays that the plan points to stay the library's.
struct Request {
  nixl_plan plan;
  void* host_request;  // the library's name for it
};

// Piece by piece, so that a piece may overlap its own target.
uint64_t copy(const nixl_plan& plan, uint64_t first, uint64_t count) {
  uint64_t bytes = 0;
  for (uint64_t i = first; i < first + count; ++i) {
    auto* local = reinterpret_cast<void*>(plan.local_addr[i]);
    auto* remote = reinterpret_cast<void*>(plan.remote_addr[i]);
    const bool write = static_cast<OpType>(plan.op) == OpType::WRITE;
    std::memmove(write ? remote : local, write ? local : remote, plan.length[i]);
    bytes += plan.length[i];
  }
  return bytes;
}

// Without a delay post() does the work, and says that it is done. With one, slices wait in a queue,
// and whoever calls progress() copies and reports those whose time has come.
//
// mutex_ guards the queue and busy_. It is never held while the library is called back, nor while
// bytes are copied.
class Loopback final : public nixl::BackendEngine {
 public:
  explicit Loopback(const nixl::BackendArgs& args)
      : BackendEngine(args, loopbackFacts()), delay_ns_(delayOf(args) * 1000) {}

  // ---- requests

  void* prepare(const nixl_plan& plan, void* host_request) override {
    return new Request{plan, host_request};
  }

  int32_t post(void* request, const nixl_post& post) override {
    auto& r = *static_cast<Request*>(request);
    if (delay_ns_ == 0) {
      copy(r.plan, post.first, post.count);
      return 0;  // done already: not reported again
    }
    {
      std::lock_guard lock(mutex_);
      queue_.push_back({nowNs() + delay_ns_, &r, post.attempt, post.first, post.count});
    }
    wake();  // there is a timer to look at
    return 1;
  }

  int32_t cancel(void* request) override {
    dropQueued(request);
    std::lock_guard lock(mutex_);
    return busy_ == request ? 1 : 0;
  }

  // The library calls it when every piece was reported, so nothing of it is in the queue.
  void release(void* request) override { delete static_cast<Request*>(request); }

  int32_t quiesce(void* /*region*/, void* /*peer*/, uint64_t deadline_ns) override {
    std::unique_lock lock(mutex_);
    return waitIdle(lock, deadline_ns);
  }

  // ---- notifications: only ever to the agent itself

  int32_t notify(void* /*peer*/, std::string_view bytes) override {
    deliver(bytes);
    return 0;
  }

  // ---- progress

  int64_t progress(uint64_t budget_ns) override {
    const uint64_t until = nowNs() + budget_ns;
    int64_t done = 0;
    do {
      Queued next;
      {
        std::lock_guard lock(mutex_);
        if (queue_.empty() || queue_.front().due_ns > nowNs()) break;
        next = queue_.front();
        queue_.pop_front();
        busy_ = next.request;
      }
      void* const host_request = next.request->host_request;
      const uint64_t bytes = copy(next.request->plan, next.first, next.count);
      // The last word about the request: it may be released before this returns.
      complete(host_request, next.attempt, next.first, next.count, Errc::OK, bytes);
      {
        std::lock_guard lock(mutex_);
        busy_ = nullptr;
      }
      idle_.notify_all();
      ++done;
    } while (nowNs() < until);
    return done;
  }

  int32_t arm() override { return nextTimer() <= nowNs() ? 1 : 0; }

  uint64_t nextTimer() override {
    std::lock_guard lock(mutex_);
    return queue_.empty() ? NIXL_NEVER : queue_.front().due_ns;
  }

  void cost(void* /*peer*/, const nixl_plan_summary& /*plan*/, nixl_cost& out) override {
    out.reachable = 1;
    out.ns_fixed = 200 + static_cast<double>(delay_ns_);
    out.ns_per_piece = 20;
    out.bytes_per_second = 8e9;
  }

  // ---- its end

  int32_t shutDown(uint64_t deadline_ns) override {
    dropQueued(nullptr);
    std::unique_lock lock(mutex_);
    return waitIdle(lock, deadline_ns);
  }

 private:
  struct Queued {  // a slice that waits for its time
    uint64_t due_ns;
    Request* request;
    uint64_t attempt, first, count;
  };

  static uint64_t delayOf(const nixl::BackendArgs& args) {
    const std::string text = args.option("delay_us", "0");
    uint64_t delay = 0;
    const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), delay);
    if (failure != std::errc() || end != text.data() + text.size() || delay > kLongestDelayUs)
      throw nixl::BackendFailure(
          Errc::INVALID_PARAM,
          "option delay_us is \"" + text + "\"; must be 0 to " + std::to_string(kLongestDelayUs));
    return delay;
  }

  // Takes what waits of a request (null: of all) out of the queue, and reports it cancelled.
  void dropQueued(const void* request) {
    std::deque<Queued> dropped;
    {
      std::lock_guard lock(mutex_);
      std::deque<Queued> kept;
      for (const Queued& q : queue_)
        (request == nullptr || q.request == request ? dropped : kept).push_back(q);
      queue_.swap(kept);
    }
    idle_.notify_all();
    // Its last report may release a request: each is looked at before it is reported.
    for (const Queued& q : dropped)
      complete(q.request->host_request, q.attempt, q.first, q.count, Errc::CANCELED, 0);
  }

  // Until nothing can land any more.
  int32_t waitIdle(std::unique_lock<std::mutex>& lock, uint64_t deadline_ns) {
    while (busy_ != nullptr || !queue_.empty()) {
      const uint64_t now = nowNs();
      if (now >= deadline_ns)
        return fail(Errc::NOT_QUIESCED, "transfers are still waiting for their delay_us to pass");
      const uint64_t longest = 1'000'000'000;  // so that "never" does not overflow
      idle_.wait_for(lock, std::chrono::nanoseconds(std::min(deadline_ns - now, longest)));
    }
    return 0;
  }

  const uint64_t delay_ns_;
  std::mutex mutex_;
  std::condition_variable idle_;   // queue_ became shorter, or busy_ null
  std::deque<Queued> queue_;       // by due_ns, since every slice waits equally long
  const Request* busy_ = nullptr;  // what progress() copies and reports: only compared
};

}  // namespace

NIXL_BACKEND(Loopback, description(), whyUnusable)
