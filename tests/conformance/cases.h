// conformance/cases.h - what a case is made of.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "area.h"
#include "conformance.h"
#include "nixl/agent.h"
#include "target.h"

namespace nixl {

// So that a failed comparison shows names.
inline void PrintTo(Errc code, std::ostream* out) { *out << errcName(code); }
inline void PrintTo(XferState state, std::ostream* out) { *out << xferStateName(state); }

}  // namespace nixl

namespace nixl::conformance {

// What a case is given: the backend, and where its target is.
struct Given {
  const BackendUnderTest& backend;
  Where where;
};

// What it asks for; without that it does not apply.
enum Needs : unsigned {
  kNothing = 0,
  kNotifications = 1u << 0,
  kFence = 1u << 1,
  kSlow = 1u << 2,     // transfers that stay in flight for `slow_for`
  kPeer = 1u << 3,     // a target that is another agent
  kProcess = 1u << 4,  // a target in another process
  kSilent = 1u << 5,   // a backend without notifications
};

struct Case {
  std::string name;
  unsigned needs;
  std::function<void(const Given&)> run;
};

std::vector<Case> dataCases();
std::vector<Case> argumentCases();
std::vector<Case> notificationCases();
std::vector<Case> lifeCases();
std::vector<Case> processCases();

// The agent of a case with a registered area, and a target that it has met.
struct Ends {
  Ends(const Given& given, uint64_t local_size, uint64_t remote_size);
  // With another configuration, or with `backend.slow` among its parameters.
  Ends(const Given& given, uint64_t local_size, uint64_t remote_size, const AgentConfig& config);

  // One piece at both begins.
  Transfer prepare(OpType op, uint64_t length, const TransferOptions& options = {});
  Transfer prepareAt(OpType op, uint64_t local_offset, uint64_t remote_offset, uint64_t length,
                     const TransferOptions& options = {});
  // Waits until it ends or the backend's patience does.
  XferState wait(Transfer transfer);
  XferState postAndWait(Transfer transfer);
  std::string errorOf(Transfer transfer);  // with its code
  TransferOptions options() const;         // through the backend alone

  const BackendUnderTest& backend;
  std::unique_ptr<Area> area;
  std::unique_ptr<Agent> agent;
  Memory memory;
  std::unique_ptr<Target> target;
};

AgentConfig slowConfig(const BackendUnderTest& backend);

// The code of what `call` throws; OK when it does not.
Errc codeOf(const std::function<void()>& call);

// A part of a transfer, as offsets into the areas.
struct Piece {
  uint64_t local, remote, length;
};

// How a transfer is asked for.
enum class Way { LISTS, ROWS, MERGED, UNMERGED };
const char* wayName(Way way);

// Moves the pieces, and looks at every byte of both areas.
void moveAndCheck(Ends& ends, OpType op, const std::vector<Piece>& pieces, Way way);

// Fills both areas, runs `move`, and checks that they hold what copying the pieces gives.
void checkMove(Ends& ends, OpType op, const std::vector<Piece>& pieces,
               const std::function<void()>& move);

}  // namespace nixl::conformance
