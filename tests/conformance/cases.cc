#include "cases.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace nixl::conformance {

Ends::Ends(const Given& given, uint64_t local_size, uint64_t remote_size)
    : Ends(given, local_size, remote_size, configOf(given.backend)) {}

Ends::Ends(const Given& given, uint64_t local_size, uint64_t remote_size, const AgentConfig& config)
    : backend(given.backend),
      area(Area::make(given.backend.local, local_size, given.backend.local_device)),
      agent(std::make_unique<Agent>("conformance", config)) {
  memory = agent->registerMemory({area->whole()}, backend.name.c_str());
  target = Target::make(given.where, backend, "conformance-target", remote_size, *agent);
  if (given.where == Where::SELF) return;
  agent->loadMetadata(target->metadata());
  target->load(agent->metadata());
}

TransferOptions Ends::options() const {
  TransferOptions options;
  options.backends = {backend.name};
  return options;
}

Transfer Ends::prepare(OpType op, uint64_t length, const TransferOptions& options) {
  return prepareAt(op, 0, 0, length, options);
}

Transfer Ends::prepareAt(OpType op, uint64_t local_offset, uint64_t remote_offset, uint64_t length,
                         const TransferOptions& options) {
  return agent->prepareTransfer(op, {area->part(local_offset, length)},
                                {target->part(remote_offset, length)}, target->name(), options);
}

XferState Ends::wait(Transfer transfer) { return agent->waitTransfer(transfer, backend.patience); }

XferState Ends::postAndWait(Transfer transfer) {
  agent->postTransfer(transfer);
  return wait(transfer);
}

std::string Ends::errorOf(Transfer transfer) {
  std::string text;
  const Errc code = agent->transferError(transfer, &text);
  return std::string(errcName(code)) + ": " + text;
}

AgentConfig slowConfig(const BackendUnderTest& backend) {
  AgentConfig config = configOf(backend);
  for (const auto& [name, value] : backend.slow) config.backend_params[backend.name][name] = value;
  return config;
}

Errc codeOf(const std::function<void()>& call) {
  try {
    call();
    return Errc::OK;
  } catch (const Error& error) {
    return error.code();
  }
}

const char* wayName(Way way) {
  switch (way) {
    case Way::LISTS:
      return "Lists";
    case Way::ROWS:
      return "Rows";
    case Way::MERGED:
      return "Merged";
    case Way::UNMERGED:
      return "Unmerged";
  }
  return "?";
}

void checkMove(Ends& ends, OpType op, const std::vector<Piece>& pieces,
               const std::function<void()>& move) {
  Bytes local = pattern(1, ends.area->size());
  Bytes remote = pattern(2, ends.target->whole().length);
  ends.area->write(0, local);
  ends.target->write(0, remote);
  ASSERT_NO_FATAL_FAILURE(move());

  for (const Piece& piece : pieces) {
    std::byte* const ours = local.data() + piece.local;
    std::byte* const theirs = remote.data() + piece.remote;
    if (piece.length != 0)
      std::memcpy(op == OpType::WRITE ? theirs : ours, op == OpType::WRITE ? ours : theirs,
                  piece.length);
  }
  EXPECT_EQ(difference(local, ends.area->read(0, local.size())), "") << "of the local side";
  EXPECT_EQ(difference(remote, ends.target->read(0, remote.size())), "") << "of the remote side";
}

void moveAndCheck(Ends& ends, OpType op, const std::vector<Piece>& pieces, Way way) {
  std::vector<MemDescriptor> local, remote;
  std::vector<uint64_t> local_rows, remote_rows;
  for (const Piece& piece : pieces) {
    local.push_back(ends.area->part(piece.local, piece.length));
    remote.push_back(ends.target->part(piece.remote, piece.length));
    local_rows.insert(local_rows.end(), {local.back().address, piece.length, local.back().device});
    remote_rows.insert(remote_rows.end(),
                       {remote.back().address, piece.length, remote.back().device});
  }
  const Rows local_table{ends.backend.local, local_rows.data(), pieces.size(), 3};
  const Rows remote_table{ends.backend.remote, remote_rows.data(), pieces.size(), 3};
  const std::string& peer = ends.target->name();
  const std::vector<std::string> allowed = {ends.backend.name};

  Side local_side, remote_side;
  Transfer transfer;
  TransferOptions options = ends.options();
  switch (way) {
    case Way::LISTS:
      transfer = ends.agent->prepareTransfer(op, local, remote, peer, options);
      break;
    case Way::ROWS:
      transfer = ends.agent->prepareTransfer(op, local_table, remote_table, peer, options);
      break;
    case Way::MERGED:
    case Way::UNMERGED: {
      local_side = ends.agent->prepareSide("", local_table, allowed);
      remote_side = ends.agent->prepareSide(peer, remote_table, allowed);
      std::vector<int32_t> indices(pieces.size());
      std::iota(indices.begin(), indices.end(), 0);
      options.merge = way == Way::MERGED;
      transfer = ends.agent->makeTransfer(op, local_side, indices.data(), remote_side,
                                          indices.data(), indices.size(), options);
      // Sides may go before what was made of them.
      ends.agent->releaseSide(local_side);
      ends.agent->releaseSide(remote_side);
      break;
    }
  }
  // What the calls were given is the caller's again.
  std::ranges::fill(local_rows, 0);
  std::ranges::fill(remote_rows, 0);
  local.clear();
  remote.clear();
  checkMove(ends, op, pieces, [&] {
    ASSERT_EQ(ends.agent->checkTransfer(transfer), XferState::PREPARED);
    ASSERT_EQ(ends.postAndWait(transfer), XferState::DONE) << ends.errorOf(transfer);
  });
  ends.agent->releaseTransfer(transfer);
}

}  // namespace nixl::conformance
