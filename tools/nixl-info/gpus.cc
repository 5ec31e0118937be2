// GPUs, and the modules that let other devices reach their memory.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "nixl-info/probes.h"

namespace nixl::info {

namespace {

// What the driver itself says; its library is opened only where it is installed.
void askDriver(Section& out) {
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    out.note("libcuda", ::dlerror(),
             "it comes with the driver; in a container, start it with --gpus all");
    return;
  }
  const auto find = [&](auto& function, const char* name) {
    using Function = std::remove_reference_t<decltype(function)>;
    function = reinterpret_cast<Function>(::dlsym(library, name));
    return function != nullptr;
  };
  int (*init)(unsigned) = nullptr;
  int (*version)(int*) = nullptr;
  int (*count)(int*) = nullptr;
  int (*get)(int*, int) = nullptr;
  int (*name_of)(char*, int, int) = nullptr;
  int (*memory_of)(size_t*, int) = nullptr;
  int (*error_name)(int, const char**) = nullptr;
  if (!find(init, "cuInit") || !find(version, "cuDriverGetVersion") ||
      !find(count, "cuDeviceGetCount") || !find(get, "cuDeviceGet") ||
      !find(name_of, "cuDeviceGetName") || !find(memory_of, "cuDeviceTotalMem_v2") ||
      !find(error_name, "cuGetErrorName")) {
    out.note("libcuda", "lacks functions that every CUDA 11 or newer has",
             "another library lies before the driver's: look at LD_LIBRARY_PATH");
    return;
  }
  if (const int result = init(0); result != 0) {
    const char* words = nullptr;
    error_name(result, &words);
    out.wrong("libcuda", "cuInit: " + std::string(words != nullptr ? words : "error") + " (" +
                             std::to_string(result) + ")",
              "the driver does not start: run nvidia-smi, and look at CUDA_VISIBLE_DEVICES");
    return;
  }
  int number = 0;
  if (version(&number) == 0)
    out.add("CUDA of the driver",
            std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10));
  int devices = 0;
  count(&devices);
  for (int i = 0; i < devices; ++i) {
    int device = 0;
    char name[256] = "";
    size_t bytes = 0;
    if (get(&device, i) != 0) continue;
    name_of(name, sizeof name, device);
    memory_of(&bytes, device);
    out.add("GPU " + std::to_string(i), std::string(name) + ", " + sizeText(bytes));
  }
  if (devices == 0)
    out.note("GPUs that programs see", "none",
             "CUDA_VISIBLE_DEVICES may hide them, or the container was started without them");
}

// A kernel module that must be loaded, or a file that it makes.
void module(const Files& files, Section& out, const char* name, const std::string& path,
            bool needed, const std::string& hint) {
  if (files.exists(path))
    out.add(name, "there (" + path + ")");
  else if (needed)
    out.note(name, "not there", hint);
}

}  // namespace

bool hasGpus(const Files& files) {
  return files.exists("/proc/driver/nvidia/version") || files.exists("/dev/nvidiactl") ||
         files.exists("/dev/kfd");
}

void probeGpus(const Machine& machine, Section& out) {
  const Files& files = machine.files;
  for (const std::string& card : files.entries("/sys/class/drm"))
    if (card.find('-') == std::string::npos && card.rfind("card", 0) == 0) {
      const std::string device = "/sys/class/drm/" + card + "/device/";
      const std::string vendor = files.textOrWhy(device + "vendor");
      const char* maker = vendor == "0x10de"   ? " (NVIDIA)"
                          : vendor == "0x1002" ? " (AMD)"
                          : vendor == "0x8086" ? " (Intel)"
                                               : "";
      out.add(card, "vendor " + vendor + maker + ", device " + files.textOrWhy(device + "device"));
    }
  if (!hasGpus(files)) {
    // Some systems have the driver's library, and none of its files (WSL).
    void* library = machine.saved ? nullptr : ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
      out.add("driver", "none: this machine has no GPU that is set up for computing");
    else
      askDriver(out);
    return;
  }
  if (files.exists("/dev/kfd")) out.add("/dev/kfd", "there: AMD's driver is loaded");
  const std::string version = files.textOrWhy("/proc/driver/nvidia/version");
  out.add("driver", version.substr(0, version.find('\n')));
  for (const std::string& gpu : files.entries("/proc/driver/nvidia/gpus")) {
    const std::string text =
        files.text("/proc/driver/nvidia/gpus/" + gpu + "/information").value_or("");
    out.add(gpu, Files::valueOf(text, "Model").value_or("unknown model"));
  }
  std::string denied;
  for (const std::string& node : files.entries("/dev"))
    if (node.rfind("nvidia", 0) == 0 && node.rfind("nvidia-caps", 0) != 0 &&
        node.rfind("nvidia-fs", 0) != 0 &&
        ::access(files.at("/dev/" + node).c_str(), R_OK | W_OK) != 0)
      denied += (denied.empty() ? "" : ", ") + node;
  if (!denied.empty())
    out.wrong("/dev/nvidia*", denied + ": Permission denied",
              "let this user open them: sudo usermod -a -G video,render $USER, and log in anew");
  if (!machine.saved) askDriver(out);

  module(files, out, "nvidia_peermem", "/sys/module/nvidia_peermem", hasRdmaDevices(files),
         "network cards reach GPU memory through it, unless they use dma-buf: sudo modprobe "
         "nvidia_peermem");
  module(files, out, "GDRCopy", "/dev/gdrdrv", true,
         "small copies between host and GPU are faster with it: install gdrcopy and load gdrdrv");
  module(files, out, "GPUDirect Storage", "/sys/module/nvidia_fs", true,
         "files are read through host memory without it: install NVIDIA's package for it and load "
         "nvidia_fs");
}

}  // namespace nixl::info
