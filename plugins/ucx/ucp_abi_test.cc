// Holds ucp_abi.h against the real headers. Nothing runs: it passes by compiling.
#include "ucp_abi.h"

#include <ucp/api/ucp.h>
#include <ucs/debug/log_def.h>

#include <cstddef>
#include <type_traits>

namespace {

namespace abi = nixl::ucx::abi;

#define SAME_VALUE(ours, theirs) \
  static_assert(static_cast<long long>(abi::ours) == static_cast<long long>(theirs))
#define SAME_FIELD(ours, theirs, field)                                   \
  static_assert(offsetof(abi::ours, field) == offsetof(theirs, field));   \
  static_assert(sizeof(abi::ours::field) == sizeof(std::declval<theirs>().field))
// Structs of newer versions may be longer.
#define FITS(ours, theirs) static_assert(sizeof(abi::ours) <= sizeof(theirs))

static_assert(sizeof(abi::Status) == sizeof(ucs_status_t));
SAME_VALUE(kOk, UCS_OK);
SAME_VALUE(kInProgress, UCS_INPROGRESS);
SAME_VALUE(kIoError, UCS_ERR_IO_ERROR);
SAME_VALUE(kNoMemory, UCS_ERR_NO_MEMORY);
SAME_VALUE(kInvalidParam, UCS_ERR_INVALID_PARAM);
SAME_VALUE(kUnreachable, UCS_ERR_UNREACHABLE);
SAME_VALUE(kInvalidAddress, UCS_ERR_INVALID_ADDR);
SAME_VALUE(kNoElement, UCS_ERR_NO_ELEM);
SAME_VALUE(kBusy, UCS_ERR_BUSY);
SAME_VALUE(kCanceled, UCS_ERR_CANCELED);
SAME_VALUE(kTimedOut, UCS_ERR_TIMED_OUT);
SAME_VALUE(kRejected, UCS_ERR_REJECTED);
SAME_VALUE(kNotConnected, UCS_ERR_NOT_CONNECTED);
SAME_VALUE(kConnectionReset, UCS_ERR_CONNECTION_RESET);
SAME_VALUE(kFirstLinkFailure, UCS_ERR_FIRST_LINK_FAILURE);
SAME_VALUE(kLastLinkFailure, UCS_ERR_LAST_LINK_FAILURE);
SAME_VALUE(kFirstEndpointFailure, UCS_ERR_FIRST_ENDPOINT_FAILURE);
SAME_VALUE(kEndpointTimeout, UCS_ERR_ENDPOINT_TIMEOUT);
SAME_VALUE(kLastEndpointFailure, UCS_ERR_LAST_ENDPOINT_FAILURE);
SAME_VALUE(kLast, UCS_ERR_LAST);

SAME_VALUE(kParamFeatures, UCP_PARAM_FIELD_FEATURES);
SAME_VALUE(kParamRequestSize, UCP_PARAM_FIELD_REQUEST_SIZE);
SAME_VALUE(kParamMtWorkersShared, UCP_PARAM_FIELD_MT_WORKERS_SHARED);
SAME_VALUE(kParamName, UCP_PARAM_FIELD_NAME);
SAME_VALUE(kFeatureRma, UCP_FEATURE_RMA);
SAME_VALUE(kFeatureAmo32, UCP_FEATURE_AMO32);
SAME_VALUE(kFeatureAmo64, UCP_FEATURE_AMO64);
SAME_VALUE(kFeatureWakeup, UCP_FEATURE_WAKEUP);
SAME_VALUE(kFeatureAm, UCP_FEATURE_AM);
FITS(Params, ucp_params_t);
SAME_FIELD(Params, ucp_params_t, field_mask);
SAME_FIELD(Params, ucp_params_t, features);
SAME_FIELD(Params, ucp_params_t, request_size);
SAME_FIELD(Params, ucp_params_t, request_init);
SAME_FIELD(Params, ucp_params_t, mt_workers_shared);
SAME_FIELD(Params, ucp_params_t, name);

SAME_VALUE(kThreadSingle, UCS_THREAD_MODE_SINGLE);
SAME_VALUE(kThreadSerialized, UCS_THREAD_MODE_SERIALIZED);
SAME_VALUE(kThreadMulti, UCS_THREAD_MODE_MULTI);
SAME_VALUE(kLibAttrMaxThreadLevel, UCP_LIB_ATTR_FIELD_MAX_THREAD_LEVEL);
FITS(LibAttr, ucp_lib_attr_t);
SAME_FIELD(LibAttr, ucp_lib_attr_t, max_thread_level);
SAME_VALUE(kWorkerParamThreadMode, UCP_WORKER_PARAM_FIELD_THREAD_MODE);
SAME_VALUE(kWorkerParamEvents, UCP_WORKER_PARAM_FIELD_EVENTS);
SAME_VALUE(kWorkerParamFlags, UCP_WORKER_PARAM_FIELD_FLAGS);
SAME_VALUE(kWorkerParamName, UCP_WORKER_PARAM_FIELD_NAME);
SAME_VALUE(kWorkerIgnoreRequestLeak, UCP_WORKER_FLAG_IGNORE_REQUEST_LEAK);
FITS(WorkerParams, ucp_worker_params_t);
static_assert(sizeof(abi::CpuSet) == sizeof(ucs_cpu_set_t));
SAME_FIELD(WorkerParams, ucp_worker_params_t, thread_mode);
SAME_FIELD(WorkerParams, ucp_worker_params_t, cpu_mask);
SAME_FIELD(WorkerParams, ucp_worker_params_t, events);
SAME_FIELD(WorkerParams, ucp_worker_params_t, user_data);
SAME_FIELD(WorkerParams, ucp_worker_params_t, event_fd);
SAME_FIELD(WorkerParams, ucp_worker_params_t, flags);
SAME_FIELD(WorkerParams, ucp_worker_params_t, name);

SAME_VALUE(kEpParamRemoteAddress, UCP_EP_PARAM_FIELD_REMOTE_ADDRESS);
SAME_VALUE(kEpParamErrHandlingMode, UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE);
SAME_VALUE(kEpParamErrHandler, UCP_EP_PARAM_FIELD_ERR_HANDLER);
SAME_VALUE(kEpParamName, UCP_EP_PARAM_FIELD_NAME);
SAME_VALUE(kErrHandlingNone, UCP_ERR_HANDLING_MODE_NONE);
SAME_VALUE(kErrHandlingPeer, UCP_ERR_HANDLING_MODE_PEER);
FITS(EpParams, ucp_ep_params_t);
SAME_FIELD(EpParams, ucp_ep_params_t, address);
SAME_FIELD(EpParams, ucp_ep_params_t, err_mode);
SAME_FIELD(EpParams, ucp_ep_params_t, err_handler);
SAME_FIELD(EpParams, ucp_ep_params_t, user_data);
SAME_FIELD(EpParams, ucp_ep_params_t, flags);
SAME_FIELD(EpParams, ucp_ep_params_t, sockaddr);
SAME_FIELD(EpParams, ucp_ep_params_t, conn_request);
SAME_FIELD(EpParams, ucp_ep_params_t, name);
SAME_FIELD(ErrHandler, ucp_err_handler_t, cb);
SAME_FIELD(ErrHandler, ucp_err_handler_t, arg);
SAME_FIELD(EpAttr, ucp_ep_attr_t, name);
SAME_FIELD(EpAttr, ucp_ep_attr_t, local_sockaddr);
SAME_FIELD(EpAttr, ucp_ep_attr_t, remote_sockaddr);
#if UCP_API_MAJOR > 1 || UCP_API_MINOR >= 15
SAME_VALUE(kEpAttrTransports, UCP_EP_ATTR_FIELD_TRANSPORTS);
SAME_FIELD(EpAttr, ucp_ep_attr_t, transports);
SAME_FIELD(Transports, ucp_transports_t, entries);
SAME_FIELD(Transports, ucp_transports_t, num_entries);
SAME_FIELD(Transports, ucp_transports_t, entry_size);
SAME_FIELD(TransportEntry, ucp_transport_entry_t, transport_name);
SAME_FIELD(TransportEntry, ucp_transport_entry_t, device_name);
#endif
SAME_VALUE(kEpPerfParamMessageSize, UCP_EP_PERF_PARAM_FIELD_MESSAGE_SIZE);
SAME_VALUE(kEpPerfAttrEstimatedTime, UCP_EP_PERF_ATTR_FIELD_ESTIMATED_TIME);
SAME_FIELD(EpPerfParam, ucp_ep_evaluate_perf_param_t, message_size);
SAME_FIELD(EpPerfAttr, ucp_ep_evaluate_perf_attr_t, estimated_time);

SAME_VALUE(kMemoryHost, UCS_MEMORY_TYPE_HOST);
SAME_VALUE(kMemoryCuda, UCS_MEMORY_TYPE_CUDA);
SAME_VALUE(kMemoryCudaManaged, UCS_MEMORY_TYPE_CUDA_MANAGED);
SAME_VALUE(kMemMapAddress, UCP_MEM_MAP_PARAM_FIELD_ADDRESS);
SAME_VALUE(kMemMapLength, UCP_MEM_MAP_PARAM_FIELD_LENGTH);
SAME_VALUE(kMemMapFlags, UCP_MEM_MAP_PARAM_FIELD_FLAGS);
SAME_VALUE(kMemMapProt, UCP_MEM_MAP_PARAM_FIELD_PROT);
SAME_VALUE(kMemMapMemoryType, UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE);
SAME_VALUE(kProtLocalRead, UCP_MEM_MAP_PROT_LOCAL_READ);
SAME_VALUE(kProtLocalWrite, UCP_MEM_MAP_PROT_LOCAL_WRITE);
SAME_VALUE(kProtRemoteRead, UCP_MEM_MAP_PROT_REMOTE_READ);
SAME_VALUE(kProtRemoteWrite, UCP_MEM_MAP_PROT_REMOTE_WRITE);
FITS(MemMapParams, ucp_mem_map_params_t);
SAME_FIELD(MemMapParams, ucp_mem_map_params_t, address);
SAME_FIELD(MemMapParams, ucp_mem_map_params_t, length);
SAME_FIELD(MemMapParams, ucp_mem_map_params_t, flags);
SAME_FIELD(MemMapParams, ucp_mem_map_params_t, prot);
SAME_FIELD(MemMapParams, ucp_mem_map_params_t, memory_type);
SAME_VALUE(kMemAttrType, UCP_MEM_ATTR_FIELD_MEM_TYPE);
FITS(MemAttr, ucp_mem_attr_t);
SAME_FIELD(MemAttr, ucp_mem_attr_t, mem_type);

SAME_VALUE(kOpRequest, UCP_OP_ATTR_FIELD_REQUEST);
SAME_VALUE(kOpCallback, UCP_OP_ATTR_FIELD_CALLBACK);
SAME_VALUE(kOpUserData, UCP_OP_ATTR_FIELD_USER_DATA);
SAME_VALUE(kOpFlags, UCP_OP_ATTR_FIELD_FLAGS);
SAME_VALUE(kOpMemoryType, UCP_OP_ATTR_FIELD_MEMORY_TYPE);
SAME_VALUE(kOpMemh, UCP_OP_ATTR_FIELD_MEMH);
SAME_VALUE(kOpNoImmediateCompletion, UCP_OP_ATTR_FLAG_NO_IMM_CMPL);
SAME_VALUE(kOpFastCompletion, UCP_OP_ATTR_FLAG_FAST_CMPL);
SAME_VALUE(kOpMultiSend, UCP_OP_ATTR_FLAG_MULTI_SEND);
SAME_VALUE(kEpCloseForce, UCP_EP_CLOSE_FLAG_FORCE);
SAME_VALUE(kAmSendEager, UCP_AM_SEND_FLAG_EAGER);
FITS(RequestParam, ucp_request_param_t);
SAME_FIELD(RequestParam, ucp_request_param_t, op_attr_mask);
SAME_FIELD(RequestParam, ucp_request_param_t, flags);
SAME_FIELD(RequestParam, ucp_request_param_t, request);
SAME_FIELD(RequestParam, ucp_request_param_t, cb);
SAME_FIELD(RequestParam, ucp_request_param_t, datatype);
SAME_FIELD(RequestParam, ucp_request_param_t, user_data);
SAME_FIELD(RequestParam, ucp_request_param_t, reply_buffer);
SAME_FIELD(RequestParam, ucp_request_param_t, memory_type);
SAME_FIELD(RequestParam, ucp_request_param_t, recv_info);
SAME_FIELD(RequestParam, ucp_request_param_t, memh);

SAME_VALUE(kAmHandlerId, UCP_AM_HANDLER_PARAM_FIELD_ID);
SAME_VALUE(kAmHandlerFlags, UCP_AM_HANDLER_PARAM_FIELD_FLAGS);
SAME_VALUE(kAmHandlerCallback, UCP_AM_HANDLER_PARAM_FIELD_CB);
SAME_VALUE(kAmHandlerArg, UCP_AM_HANDLER_PARAM_FIELD_ARG);
SAME_VALUE(kAmWholeMessage, UCP_AM_FLAG_WHOLE_MSG);
SAME_VALUE(kAmRecvIsRendezvous, UCP_AM_RECV_ATTR_FLAG_RNDV);
SAME_FIELD(AmRecvParam, ucp_am_recv_param_t, recv_attr);
SAME_FIELD(AmRecvParam, ucp_am_recv_param_t, reply_ep);
SAME_FIELD(AmHandlerParam, ucp_am_handler_param_t, id);
SAME_FIELD(AmHandlerParam, ucp_am_handler_param_t, flags);
SAME_FIELD(AmHandlerParam, ucp_am_handler_param_t, cb);
SAME_FIELD(AmHandlerParam, ucp_am_handler_param_t, arg);

SAME_VALUE(kLogFatal, UCS_LOG_LEVEL_FATAL);
SAME_VALUE(kLogError, UCS_LOG_LEVEL_ERROR);
SAME_VALUE(kLogWarn, UCS_LOG_LEVEL_WARN);
SAME_VALUE(kLogDiag, UCS_LOG_LEVEL_DIAG);
SAME_VALUE(kLogInfo, UCS_LOG_LEVEL_INFO);
SAME_VALUE(kLogStop, UCS_LOG_FUNC_RC_STOP);
SAME_VALUE(kLogContinue, UCS_LOG_FUNC_RC_CONTINUE);

// A function takes as many parameters as we say.
template <typename Function>
struct Arity;
template <typename Result, typename... Parameters>
struct Arity<Result(Parameters...)> {
  static constexpr size_t kCount = sizeof...(Parameters);
  static constexpr size_t kBytes = (sizeof(Parameters) + ... + 0);
};
template <typename Result, typename... Parameters>
struct Arity<Result (*)(Parameters...)> : Arity<Result(Parameters...)> {};

#define SAME_FUNCTION(name, result, parameters)                                \
  static_assert(Arity<decltype(abi::Functions::name)>::kCount ==               \
                Arity<decltype(ucp_##name)>::kCount);                          \
  static_assert(Arity<decltype(abi::Functions::name)>::kBytes ==               \
                Arity<decltype(ucp_##name)>::kBytes);
#define OPTIONAL_FUNCTION(name, result, parameters)
NIXL_UCP_FUNCTIONS(SAME_FUNCTION, OPTIONAL_FUNCTION)

}  // namespace

int main() { return 0; }
