// nixl-info/probes.h - what is found out about this machine, one subject each.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nixl-info/facts.h"
#include "nixl-info/files.h"
#include "nixl/agent.h"

namespace nixl::info {

// What every probe goes by.
struct Machine {
  Files files{""};
  std::string python;  // the interpreter to ask; empty: python3 of PATH
  bool saved = false;  // the files are a copy of another machine's: ask nothing but them
  std::vector<PluginReport> plugins;  // tried out before: that takes a process of one thread
};

void probeSystem(const Machine& machine, Section& out);      // distribution, kernel, container
void probeProcessors(const Machine& machine, Section& out);  // cores, quota, affinity, NUMA
void probeMemory(const Machine& machine, Section& out);      // sizes, limits, huge pages, /dev/shm
void probeLimits(const Machine& machine, Section& out);      // of this process
void probePermissions(const Machine& machine, Section& out);
void probeNetwork(const Machine& machine, Section& out);
void probeRdma(const Machine& machine, Section& out);
void probeGpus(const Machine& machine, Section& out);
void probeVersions(const Machine& machine, Section& out);
void probeEnvironment(const Machine& machine, Section& out);
void probePlugins(const Machine& machine, Section& out);

// All of them, in the order in which they are shown.
std::vector<Probe> allProbes(const Machine& machine);

// The numbers at the start of a line, such as a size in kB of /proc/meminfo; 0: none.
uint64_t leadingNumber(const std::string& text);
std::string sizeText(uint64_t bytes);
// 1 core, 2 cores.
std::string counted(uint64_t count, const std::string& one, const std::string& many);

// Whether the machine has what a hint is about.
bool hasRdmaDevices(const Files& files);
bool hasGpus(const Files& files);

// A value of the environment, fit to be shown: what is a secret by the variable's name is "set
// (hidden)", and the password in "http://user:password@host" is left out.
std::string shownValue(const std::string& name, const std::string& value);

// The one of `known` that somebody may have meant; none where nothing is close.
std::vector<std::string> closeTo(const std::string& name, const std::vector<std::string>& known);

}  // namespace nixl::info
