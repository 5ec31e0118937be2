// nixlbench/options.h - what the command line asks for.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/early_end.h"
#include "nixl/types.h"
#include "nixlbench/buffer.h"
#include "nixlbench/shape.h"

namespace nixl::bench {

enum class Output { TEXT, TABLE, JSON };

// Who the other side is, or which side we are.
enum class Peers {
  TWO_PROCESSES,  // the target is a process that we start
  ONE_PROCESS,
  CONNECT,  // the target is on another host, and listens
  LISTEN,   // we are that target
  SERVE,    // we are the process that another nixlbench started
};

struct Options {
  std::string backend;  // as it was written; "": the library's default, and its choice of path
  OpType op = OpType::WRITE;
  Place src, dst;  // where the bytes come from, and where they go
  std::vector<Shape> shapes;
  enum class Blocks { NONE, OF_A_SIZE, OF_A_COUNT } blocks = Blocks::NONE;  // what was asked for

  uint64_t iterations = 100;
  uint64_t warmup = 0;  // set by the parser: a tenth of the iterations unless given
  bool verify = true;
  uint64_t seed = 1;
  std::chrono::microseconds poll{0};  // sleep between polls; 0: none
  std::chrono::seconds timeout{60};   // of one transfer, and of one answer of the other side

  Peers peers = Peers::TWO_PROCESSES;
  std::string host;   // CONNECT
  uint16_t port = 0;  // CONNECT, LISTEN
  int serve_fd = -1;  // SERVE

  Output output = Output::TEXT;

  const Place& initiatorPlace() const { return op == OpType::WRITE ? src : dst; }
  const Place& targetPlace() const { return op == OpType::WRITE ? dst : src; }
  uint64_t largest() const;  // bytes of the largest transfer
};

// `args` without the program's name.
std::variant<Options, tools::EarlyEnd> parseOptions(std::vector<std::string> args);

}  // namespace nixl::bench
