// A good plugin, except that it cannot run here and that its engine's constructor throws.
#include <stdexcept>

#include "nixl/backend.h"

namespace {

constexpr nixl_option kOptions[] = {
    {"depth", "16", "how deep it goes"}, {"plain", nullptr, nullptr}, {nullptr, nullptr, nullptr}};

const nixl_facts kFacts = nixl::backendFacts({nixl::MemType::DRAM, nixl::MemType::FILE},
                                             NIXL_ENGINE_LOCAL | NIXL_ENGINE_NOTIF);

class Throwing final : public nixl::BackendEngine {
 public:
  explicit Throwing(const nixl::BackendArgs& args) : BackendEngine(args, kFacts) {
    throw std::runtime_error("the constructor gave up");
  }
  void* prepare(const nixl_plan&, void*) override { return nullptr; }
  int32_t post(void*, const nixl_post&) override { return 0; }
  void release(void*) override {}
};

nixl::BackendDescription description() {
  return {"THROWINGENGINE", "0.1", "throws when it is made", kOptions, kFacts};
}

std::string whyUnusable() { return "no such device here; plug one in"; }

}  // namespace

NIXL_BACKEND(Throwing, description(), whyUnusable)
