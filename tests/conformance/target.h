// conformance/target.h - the other end of transfers, wherever it is.
#pragma once

#include <sys/types.h>

#include <future>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "area.h"
#include "conformance.h"
#include "nixl/agent.h"

namespace nixl::conformance {

enum class Where {
  SELF,     // the agent itself
  PAIR,     // another agent of this process
  PROCESS,  // an agent of another process
};
const char* whereName(Where where);

// An agent with a registered area. A case moves bytes between its own agent and this one.
class Target {
 public:
  // `agent` is the case's own; with SELF the target is made of it.
  static std::unique_ptr<Target> make(Where where, const BackendUnderTest& backend,
                                      const std::string& name, uint64_t size, Agent& agent);
  virtual ~Target() = default;

  const std::string& name() const { return name_; }
  // Of the area, with addresses that mean something only there.
  MemDescriptor part(uint64_t offset, uint64_t size) const;
  MemDescriptor whole() const { return whole_; }

  virtual void write(uint64_t offset, const Bytes& bytes) = 0;
  virtual Bytes read(uint64_t offset, uint64_t size) = 0;

  virtual std::string metadata() = 0;
  virtual void load(const std::string& metadata) = 0;
  virtual void deregister() = 0;
  virtual Errc notify(const std::string& peer, const std::string& message) = 0;
  // The messages that came until there are `count`, in their order; fewer when patience ends.
  virtual std::vector<Notification> notifications(size_t count) = 0;

  // Waits for `message` there, and at that moment looks whether the area holds `wanted` at
  // `offset`. "" if so, otherwise what was wrong. Does not block; the answer comes in its time.
  virtual std::future<std::string> expect(const std::string& message, uint64_t offset,
                                          const Bytes& wanted) = 0;

 protected:
  Target(std::string name) : name_(std::move(name)) {}

  std::string name_;
  MemDescriptor whole_;
};

// The other process. Beyond what a target does, it can be stopped and killed.
class ProcessTarget final : public Target {
 public:
  ProcessTarget(const BackendUnderTest& backend, const std::string& name, uint64_t size);
  ~ProcessTarget() override;

  void write(uint64_t offset, const Bytes& bytes) override;
  Bytes read(uint64_t offset, uint64_t size) override;
  std::string metadata() override;
  void load(const std::string& metadata) override;
  void deregister() override;
  Errc notify(const std::string& peer, const std::string& message) override;
  std::vector<Notification> notifications(size_t count) override;
  std::future<std::string> expect(const std::string& message, uint64_t offset,
                                  const Bytes& wanted) override;

  void kill();    // SIGKILL, and waits until it is gone
  void stop();    // SIGSTOP, and waits until it stands
  void resume();  // SIGCONT

  // What the other process does instead of running tests, if it is told to by its arguments; then
  // this does not return.
  static void runIfAsked(int argc, char** argv, const std::vector<BackendUnderTest>& backends);

 private:
  std::string ask(std::string_view verb, uint64_t a = 0, uint64_t b = 0,
                  std::string_view bytes = {});

  int socket_ = -1;
  pid_t child_ = -1;
  std::chrono::milliseconds patience_;
};

// What agents are made with.
AgentConfig configOf(const BackendUnderTest& backend);

}  // namespace nixl::conformance
