// common/cuda.h - CUDA behind common/gpu.h. Others include that one.
#pragma once

#include <string>

#include "common/gpu.h"

namespace nixl::gpu {

Driver& openCuda();
std::string whyNoCuda();

// What a PCI Express link of so many transfers a second ("16.0 GT/s PCIe") and lanes ("16") moves,
// in bytes per second; 0 for words that mean nothing.
double pciRate(const std::string& speed, const std::string& width);

}  // namespace nixl::gpu
