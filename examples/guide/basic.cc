// The guide's basic example, whole: two agents in one program, so that it runs anywhere. With two
// programs the metadata travels over whatever connection they already have.
//
//   g++ -std=c++17 basic.cc -lnixl -o basic && ./basic
#include <nixl/agent.h>
#include <nixl/backend.h>

#include <cstdio>
#include <memory>
#include <vector>

int main() {
  try {
    const std::size_t size = 1 << 20;
    std::vector<char> source(size, 'x'), destination(size);
    void* addr = source.data();

    // Create agent
    nixl::AgentConfig config;
    config.backends = {"UCX"};
    auto agent = std::make_unique<nixl::Agent>("my_agent", config);
    auto remote_agent = std::make_unique<nixl::Agent>("remote_agent", config);

    // Register memory
    std::vector<nixl::MemDescriptor> descs = {
        {addr, size, 0, nixl::MemType::DRAM}
    };
    auto reg_handle = agent->registerMemory(descs, "UCX");

    std::vector<nixl::MemDescriptor> remote_descs = {
        {destination.data(), size, 0, nixl::MemType::DRAM}
    };
    auto remote_handle = remote_agent->registerMemory(remote_descs, "UCX");

    // Exchange metadata: it says how to reach an agent, and what it has registered
    agent->loadMetadata(remote_agent->metadata());
    remote_agent->loadMetadata(agent->metadata());

    // Create transfer
    const auto& local_descs = descs;
    auto xfer_handle = agent->prepareTransfer(
        nixl::OpType::WRITE,
        local_descs,
        remote_descs,
        "remote_agent",
        "UCX"
    );

    // Execute transfer
    agent->postTransfer(xfer_handle);

    // Poll for completion
    nixl::XferState state;
    while ((state = agent->checkTransfer(xfer_handle)) != nixl::XferState::DONE) {
      if (state == nixl::XferState::POSTED) continue;
      std::string why;
      agent->transferError(xfer_handle, &why);
      std::fprintf(stderr, "the transfer failed: %s\n", why.c_str());
      return 1;
    }

    // Cleanup
    agent->releaseTransfer(xfer_handle);
    agent->deregisterMemory(reg_handle);
    remote_agent->deregisterMemory(remote_handle);

    if (destination != source) {
      std::fprintf(stderr, "the transfer ended, but the bytes differ\n");
      return 1;
    }
    std::printf("moved %zu bytes from my_agent to remote_agent\n", size);
    return 0;
  } catch (const nixl::Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
