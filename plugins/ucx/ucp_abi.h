// plugins/ucx/ucp_abi.h - the part of UCX's binary interface that this engine calls, declared here
// so that building needs no UCX.
//
// An interface description of ucp/api/ucp.h and ucs/type/status.h, 1.13 to 1.22: UCX names the
// fields of a struct that are valid in a mask and only ever appends fields, so that one description
// fits them all. ucp_abi_test.cc holds it against the real headers where those are installed.
// Functions that not every one of these versions has are marked optional.
#pragma once

#include <sys/socket.h>

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>

namespace nixl::ucx::abi {

// ucs_status_t is an enumeration packed into one byte.
using Status = int8_t;
inline constexpr Status kOk = 0;
inline constexpr Status kInProgress = 1;
inline constexpr Status kIoError = -3;
inline constexpr Status kNoMemory = -4;
inline constexpr Status kInvalidParam = -5;
inline constexpr Status kUnreachable = -6;
inline constexpr Status kInvalidAddress = -7;
inline constexpr Status kNoElement = -12;
inline constexpr Status kBusy = -15;
inline constexpr Status kCanceled = -16;
inline constexpr Status kTimedOut = -20;
inline constexpr Status kRejected = -23;
inline constexpr Status kNotConnected = -24;
inline constexpr Status kConnectionReset = -25;
inline constexpr Status kFirstLinkFailure = -40;
inline constexpr Status kLastLinkFailure = -59;
inline constexpr Status kFirstEndpointFailure = -60;
inline constexpr Status kEndpointTimeout = -80;
inline constexpr Status kLastEndpointFailure = -89;
inline constexpr Status kLast = -100;

// What "nbx" functions return: null (done), a request (will be reported), or a status as a pointer.
using StatusPointer = void*;
inline bool isError(StatusPointer p) {
  return reinterpret_cast<uintptr_t>(p) >= static_cast<uintptr_t>(static_cast<intptr_t>(kLast));
}
inline Status errorOf(StatusPointer p) {
  return static_cast<Status>(reinterpret_cast<intptr_t>(p));
}

struct ContextObject;
struct ConfigObject;
struct WorkerObject;
struct EpObject;
struct MemObject;
struct RkeyObject;
struct AddressObject;
using Context = ContextObject*;
using Config = ConfigObject*;
using WorkerHandle = WorkerObject*;
using Ep = EpObject*;
using Mem = MemObject*;
using Rkey = RkeyObject*;
using Address = AddressObject*;

// ---- ucp_params

inline constexpr uint64_t kParamFeatures = 1u << 0;
inline constexpr uint64_t kParamRequestSize = 1u << 1;
inline constexpr uint64_t kParamMtWorkersShared = 1u << 5;
inline constexpr uint64_t kParamName = 1u << 8;

inline constexpr uint64_t kFeatureRma = 1u << 1;
inline constexpr uint64_t kFeatureAmo32 = 1u << 2;
inline constexpr uint64_t kFeatureAmo64 = 1u << 3;
inline constexpr uint64_t kFeatureWakeup = 1u << 4;
inline constexpr uint64_t kFeatureAm = 1u << 6;

struct Params {
  uint64_t field_mask;
  uint64_t features;
  size_t request_size;  // bytes of ours in every request
  void (*request_init)(void* request);
  void (*request_cleanup)(void* request);
  uint64_t tag_sender_mask;
  int mt_workers_shared;
  size_t estimated_num_eps;
  size_t estimated_num_ppn;
  const char* name;
};

// ---- ucp_lib_attr, ucp_worker_params

enum ThreadMode : unsigned { kThreadSingle = 0, kThreadSerialized = 1, kThreadMulti = 2 };

inline constexpr uint64_t kLibAttrMaxThreadLevel = 1u << 0;
struct LibAttr {
  uint64_t field_mask;
  ThreadMode max_thread_level;
};

inline constexpr uint64_t kWorkerParamThreadMode = 1u << 0;
inline constexpr uint64_t kWorkerParamEvents = 1u << 2;
inline constexpr uint64_t kWorkerParamFlags = 1u << 5;
inline constexpr uint64_t kWorkerParamName = 1u << 6;
inline constexpr uint64_t kWorkerIgnoreRequestLeak = 1u << 0;

struct CpuSet {
  unsigned long bits[1024 / (8 * sizeof(unsigned long))];
};

struct WorkerParams {
  uint64_t field_mask;
  ThreadMode thread_mode;
  CpuSet cpu_mask;
  unsigned events;
  void* user_data;
  int event_fd;
  uint64_t flags;
  const char* name;
};

// ---- ucp_ep_params, ucp_ep_attr

inline constexpr uint64_t kEpParamRemoteAddress = 1u << 0;
inline constexpr uint64_t kEpParamErrHandlingMode = 1u << 1;
inline constexpr uint64_t kEpParamErrHandler = 1u << 2;
inline constexpr uint64_t kEpParamName = 1u << 7;

enum ErrHandlingMode : unsigned { kErrHandlingNone = 0, kErrHandlingPeer = 1 };

struct ErrHandler {
  void (*cb)(void* arg, Ep ep, Status status);
  void* arg;
};

struct SockAddr {
  const struct sockaddr* addr;
  socklen_t addrlen;
};

struct EpParams {
  uint64_t field_mask;
  const AddressObject* address;
  ErrHandlingMode err_mode;
  ErrHandler err_handler;
  void* user_data;
  unsigned flags;
  SockAddr sockaddr;
  void* conn_request;
  const char* name;
};

inline constexpr uint64_t kEpAttrTransports = 1u << 3;

struct TransportEntry {
  const char* transport_name;
  const char* device_name;
};
struct Transports {
  TransportEntry* entries;
  unsigned num_entries;
  size_t entry_size;
};
struct EpAttr {
  uint64_t field_mask;
  char name[32];
  struct sockaddr_storage local_sockaddr;
  struct sockaddr_storage remote_sockaddr;
  Transports transports;  // since 1.15
};

inline constexpr uint64_t kEpPerfParamMessageSize = 1u << 0;
inline constexpr uint64_t kEpPerfAttrEstimatedTime = 1u << 0;
struct EpPerfParam {
  uint64_t field_mask;
  size_t message_size;
};
struct EpPerfAttr {
  uint64_t field_mask;
  double estimated_time;  // seconds
};

// ---- memory

enum MemoryType : unsigned {
  kMemoryHost = 0,
  kMemoryCuda = 1,
  kMemoryCudaManaged = 2,
};

inline constexpr uint64_t kMemMapAddress = 1u << 0;
inline constexpr uint64_t kMemMapLength = 1u << 1;
inline constexpr uint64_t kMemMapFlags = 1u << 2;
inline constexpr uint64_t kMemMapProt = 1u << 3;
inline constexpr uint64_t kMemMapMemoryType = 1u << 4;

inline constexpr unsigned kProtLocalRead = 1u << 0;
inline constexpr unsigned kProtLocalWrite = 1u << 1;
inline constexpr unsigned kProtRemoteRead = 1u << 8;
inline constexpr unsigned kProtRemoteWrite = 1u << 9;

struct MemMapParams {
  uint64_t field_mask;
  void* address;
  size_t length;
  unsigned flags;
  unsigned prot;
  MemoryType memory_type;
};

inline constexpr uint64_t kMemAttrType = 1u << 2;
struct MemAttr {
  uint64_t field_mask;
  void* address;
  size_t length;
  MemoryType mem_type;
};

// ---- operations

inline constexpr uint32_t kOpRequest = 1u << 0;
inline constexpr uint32_t kOpCallback = 1u << 1;
inline constexpr uint32_t kOpUserData = 1u << 2;
inline constexpr uint32_t kOpFlags = 1u << 4;
inline constexpr uint32_t kOpMemoryType = 1u << 6;
inline constexpr uint32_t kOpMemh = 1u << 8;
inline constexpr uint32_t kOpNoImmediateCompletion = 1u << 16;
inline constexpr uint32_t kOpFastCompletion = 1u << 17;
inline constexpr uint32_t kOpMultiSend = 1u << 19;

inline constexpr uint32_t kEpCloseForce = 1u << 0;
inline constexpr uint32_t kAmSendEager = 1u << 1;

union Callback {
  void (*send)(void* request, Status status, void* user_data);
  void (*recv_am)(void* request, Status status, size_t length, void* user_data);
};

struct RequestParam {
  uint32_t op_attr_mask;
  uint32_t flags;
  void* request;
  Callback cb;
  uint64_t datatype;
  void* user_data;
  void* reply_buffer;
  MemoryType memory_type;
  void* recv_info;
  Mem memh;
};

// ---- active messages

inline constexpr uint64_t kAmHandlerId = 1u << 0;
inline constexpr uint64_t kAmHandlerFlags = 1u << 1;
inline constexpr uint64_t kAmHandlerCallback = 1u << 2;
inline constexpr uint64_t kAmHandlerArg = 1u << 3;
inline constexpr uint32_t kAmWholeMessage = 1u << 0;
inline constexpr uint64_t kAmRecvIsRendezvous = 1u << 17;

struct AmRecvParam {
  uint64_t recv_attr;
  Ep reply_ep;
};
struct AmHandlerParam {
  uint64_t field_mask;
  unsigned id;
  uint32_t flags;
  Status (*cb)(void* arg, const void* header, size_t header_length, void* data, size_t length,
               const AmRecvParam* param);
  void* arg;
};

// ---- logging (libucs)

enum LogLevel : unsigned { kLogFatal = 0, kLogError = 1, kLogWarn = 2, kLogDiag = 3, kLogInfo = 4 };
enum LogResult : unsigned { kLogStop = 0, kLogContinue = 1 };
using LogHandler = LogResult (*)(const char* file, unsigned line, const char* function,
                                 LogLevel level, const void* component, const char* format,
                                 va_list arguments);

// ---- functions: X(name after "ucp_", result, parameters), Y(the same, may be missing)

#define NIXL_UCP_FUNCTIONS(X, Y)                                                                \
  X(get_version, void, (unsigned* major, unsigned* minor, unsigned* release))                   \
  X(lib_query, Status, (LibAttr * attr))                                                        \
  X(config_read, Status, (const char* prefix, const char* file, Config* config))                \
  X(config_release, void, (Config config))                                                      \
  X(config_modify, Status, (Config config, const char* name, const char* value))                \
  X(init_version, Status,                                                                       \
    (unsigned major, unsigned minor, const Params* params, Config config, Context* context))    \
  X(cleanup, void, (Context context))                                                           \
  X(worker_create, Status, (Context context, const WorkerParams* params, WorkerHandle* worker)) \
  X(worker_destroy, void, (WorkerHandle worker))                                                \
  X(worker_get_address, Status, (WorkerHandle worker, Address * address, size_t* length))       \
  X(worker_release_address, void, (WorkerHandle worker, Address address))                       \
  X(worker_progress, unsigned, (WorkerHandle worker))                                           \
  X(worker_get_efd, Status, (WorkerHandle worker, int* fd))                                     \
  X(worker_arm, Status, (WorkerHandle worker))                                                  \
  X(worker_signal, Status, (WorkerHandle worker))                                               \
  X(worker_set_am_recv_handler, Status, (WorkerHandle worker, const AmHandlerParam* param))     \
  X(ep_create, Status, (WorkerHandle worker, const EpParams* params, Ep* ep))                   \
  X(ep_close_nbx, StatusPointer, (Ep ep, const RequestParam* param))                            \
  X(ep_flush_nbx, StatusPointer, (Ep ep, const RequestParam* param))                            \
  Y(ep_query, Status, (Ep ep, EpAttr * attr))                                                   \
  Y(ep_evaluate_perf, Status, (Ep ep, const EpPerfParam* param, EpPerfAttr* attr))              \
  X(mem_map, Status, (Context context, const MemMapParams* params, Mem* mem))                   \
  X(mem_unmap, Status, (Context context, Mem mem))                                              \
  X(mem_query, Status, (const Mem mem, MemAttr* attr))                                          \
  X(rkey_pack, Status, (Context context, Mem mem, void** buffer, size_t* size))                 \
  X(rkey_buffer_release, void, (void* buffer))                                                  \
  X(ep_rkey_unpack, Status, (Ep ep, const void* buffer, Rkey* rkey))                            \
  X(rkey_destroy, void, (Rkey rkey))                                                            \
  X(put_nbx, StatusPointer,                                                                     \
    (Ep ep, const void* buffer, size_t size, uint64_t remote_addr, Rkey rkey,                   \
     const RequestParam* param))                                                                \
  X(get_nbx, StatusPointer,                                                                     \
    (Ep ep, void* buffer, size_t size, uint64_t remote_addr, Rkey rkey,                         \
     const RequestParam* param))                                                                \
  X(am_send_nbx, StatusPointer,                                                                 \
    (Ep ep, unsigned id, const void* header, size_t header_length, const void* buffer,          \
     size_t size, const RequestParam* param))                                                   \
  X(am_recv_data_nbx, StatusPointer,                                                            \
    (WorkerHandle worker, void* descriptor, void* buffer, size_t size,                          \
     const RequestParam* param))                                                                \
  X(request_check_status, Status, (void* request))                                              \
  X(request_cancel, void, (WorkerHandle worker, void* request))                                 \
  X(request_free, void, (void* request))

// The functions of libucp, by their names without "ucp_", and three of libucs.
struct Functions {
#define NIXL_UCP_MEMBER(name, result, parameters) result(*name) parameters = nullptr;
  NIXL_UCP_FUNCTIONS(NIXL_UCP_MEMBER, NIXL_UCP_MEMBER)
#undef NIXL_UCP_MEMBER
  const char* (*status_string)(Status status) = nullptr;
  void (*context_print_info)(const Context context, std::FILE* stream) = nullptr;  // may be missing
  void (*log_push_handler)(LogHandler handler) = nullptr;  // may be missing
  void (*log_pop_handler)() = nullptr;                     // may be missing
};

}  // namespace nixl::ucx::abi
