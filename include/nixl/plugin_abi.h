/* nixl/plugin_abi.h - the boundary between the library and an engine ("backend"), in plain C.
 *
 * Authors normally write a C++ class against nixl/backend.h, which does this side for them.
 *
 * Rules that hold everywhere:
 *  - No C++ type, exception or allocation crosses. Every struct starts with `struct_size`, set by
 *    whoever fills it to sizeof as *it* was compiled; fields are only ever appended, and a reader
 *    looks at a field only if struct_size covers it (NIXL_ABI_HAS).
 *  - A function pointer may be NULL: the engine cannot do that (see each one's comment).
 *  - Results are nixl codes: 0 done, 1 in progress, negative failed (the numbers of nixl::Errc).
 *    A negative result fills *err; text is a sentence (what, why, what to try), without secrets.
 *  - No engine call blocks, except those that take a deadline. Times are CLOCK_MONOTONIC
 *    nanoseconds.
 *  - The library calls without holding a lock of its own. Calls for different requests overlap on
 *    several threads, calls for one request do not; progress() is entered by one thread at a time,
 *    but beside the other calls. An engine with NIXL_ENGINE_SERIAL gets one call at a time.
 *  - Host functions may be called from any engine call and from the engine's own threads, but with
 *    no lock of the engine held: they may call back into the engine (notify, release).
 *
 * The version is 0 and everything here may change until six engines pass the conformance suite.
 */
#ifndef NIXL_PLUGIN_ABI_H
#define NIXL_PLUGIN_ABI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NIXL_PLUGIN_ABI_VERSION 0u
#define NIXL_PLUGIN_SYMBOL "nixl_backend_init" /* the one symbol that a plugin exports */

/* True when `object`, as its filler knew it, has `field`. */
#define NIXL_ABI_HAS(object, type, field) \
  ((object)->struct_size >= offsetof(type, field) + sizeof((object)->field))

#define NIXL_NEVER UINT64_MAX /* a deadline or timer that never comes */

/* Where the callee writes what went wrong; the memory is the caller's. */
typedef struct nixl_error {
  uint32_t struct_size;
  int32_t native_code; /* the engine's library's own number; 0: none */
  char *text;          /* NUL-terminated by the callee, cut at capacity */
  size_t capacity;     /* bytes at text, the NUL included */
} nixl_error;

/* ---- facts ------------------------------------------------------------------------------ */

typedef struct nixl_option { /* an array of them ends with name == NULL */
  const char *name;
  const char *default_value;
  const char *help; /* one line */
} nixl_option;

enum nixl_engine_flags {
  NIXL_ENGINE_LOCAL = 1u << 0,           /* moves bytes inside one agent (peer == NULL) */
  NIXL_ENGINE_REMOTE = 1u << 1,          /* moves bytes between agents */
  NIXL_ENGINE_NOTIF = 1u << 2,           /* has notify() */
  NIXL_ENGINE_NOTIF_WITH_DATA = 1u << 3, /* post() can carry the notification itself */
  NIXL_ENGINE_TAKES_STRIDED = 1u << 4,   /* plans may have strided rows */
  NIXL_ENGINE_OWNER_PROGRESS = 1u << 5,  /* peers wait for *our* progress(): run it while connected */
  NIXL_ENGINE_AUTO_LANE = 1u << 6,       /* offered to agents without being asked for by name */
  NIXL_ENGINE_WANTS_ORDER = 1u << 7,     /* pieces sorted by remote address are faster */
  NIXL_ENGINE_SERIAL = 1u << 8,          /* one call at a time */
  NIXL_ENGINE_QUERY = 1u << 9            /* storage verbs */
};

/* What keeps a cancelled or deregistered range from being written late. */
enum nixl_fence {
  NIXL_FENCE_NONE = 0,  /* nothing: peers must be asked */
  NIXL_FENCE_REVOKE = 1, /* the owner refuses */
  NIXL_FENCE_LEASE = 2   /* the writer checks a shared generation */
};

typedef struct nixl_facts {
  uint32_t struct_size;
  uint32_t memory_kinds; /* bit n: nixl::MemType n */
  uint32_t flags;        /* nixl_engine_flags */
  uint32_t fence;        /* nixl_fence */
  uint64_t alignment;    /* of addresses and lengths, bytes; 1: none */
  uint64_t max_piece;    /* bytes; longer pieces are split by the library; 0: no limit */
  uint64_t max_slice;    /* pieces handed over by one post(); 0: no limit */
} nixl_facts;

/* ---- memory ----------------------------------------------------------------------------- */

typedef struct nixl_region {
  uint32_t struct_size;
  uint32_t kind; /* nixl::MemType */
  uint64_t addr;
  uint64_t length; /* bytes; 0 with files, objects and blocks: no bound */
  uint64_t device;
  const void *info; /* path, key, ... as given at registration; not NUL-terminated */
  size_t info_size;
  uint64_t generation; /* of this registration, unique within the agent */
  uint32_t rights;     /* bit 0: peers may read, bit 1: peers may write */
  int32_t dmabuf_fd;   /* -1: none; stays the caller's */
} nixl_region;

/* ---- transfers -------------------------------------------------------------------------- */

typedef struct nixl_strided_row { /* `count` pieces */
  uint64_t local_addr, remote_addr;
  uint64_t local_stride, remote_stride;
  uint64_t length, count;
  uint32_t local_region, remote_region;
} nixl_strided_row;

/* A prepared request. Everything it points to stays valid and unchanged until release().
 * Piece i moves length[i] bytes between local_addr[i] in local_regions[local_region[i]] and
 * remote_addr[i] in remote_regions[remote_region[i]]. A NULL index array means: all of them 0.
 * With rows (only engines that take them) the piece arrays are NULL; pieces count row by row. */
typedef struct nixl_plan {
  uint32_t struct_size;
  uint32_t op; /* nixl::OpType */
  uint32_t local_kind, remote_kind;
  void *peer; /* from connect(); NULL: the agent itself, and remote_regions are own registrations */
  uint64_t count; /* pieces */
  uint64_t bytes;
  const uint64_t *local_addr, *remote_addr, *length;
  const uint32_t *local_region, *remote_region;
  void *const *local_regions;  /* from register_memory() */
  void *const *remote_regions; /* from load() */
  uint32_t local_region_count, remote_region_count;
  const nixl_strided_row *rows;
  uint64_t row_count;
  const char *custom; /* the caller's words to this engine; may be empty */
  size_t custom_size;
} nixl_plan;

enum nixl_post_flags {
  NIXL_POST_LAST = 1u << 0 /* the slice that makes the attempt whole */
};

typedef struct nixl_post {
  uint32_t struct_size;
  uint32_t flags;
  uint64_t attempt; /* counts posts of this request; completions name it */
  uint64_t first;   /* pieces [first, first + count) of the plan */
  uint64_t count;
  const void *notif; /* only with LAST, and only to NOTIF_WITH_DATA engines; else NULL */
  size_t notif_size;
  void *stream; /* device stream to order after; NULL: none */
} nixl_post;

typedef struct nixl_cost {
  uint32_t struct_size;
  uint32_t reachable;        /* 0: no; then `why` says why not */
  double ns_fixed;           /* per request */
  double ns_per_piece;
  double bytes_per_second;
  char why[256];
} nixl_cost;

typedef struct nixl_plan_summary {
  uint32_t struct_size;
  uint32_t op, local_kind, remote_kind;
  uint64_t pieces, bytes;
} nixl_plan_summary;

/* ---- storage ---------------------------------------------------------------------------- */

enum nixl_storage_verb { NIXL_STORAGE_STAT = 0, NIXL_STORAGE_DELETE = 1, NIXL_STORAGE_LIST = 2 };

/* Called once per fact found: `index` is the region's position; key == NULL: it exists, no facts. */
typedef void (*nixl_storage_emit)(void *context, uint64_t index, const char *key,
                                  const char *value);

/* ---- the host, as an engine sees it -------------------------------------------------------- */

enum nixl_peer_state {
  NIXL_PEER_CONNECTING = 0,
  NIXL_PEER_UP = 1,
  NIXL_PEER_SUSPECT = 2,
  NIXL_PEER_DOWN = 3 /* nothing can be sent until it is connected anew */
};

typedef struct nixl_host {
  uint32_t struct_size;
  uint32_t abi_version;
  void *context; /* first argument of the functions that take `host` */

  /* Pieces [first, first + count) of an attempt ended: status 0 done, negative failed or
   * cancelled; `bytes` that moved. Each posted piece is reported exactly once. After the report
   * of a piece nothing of it may land. `text` may be NULL. Unknown attempts are ignored. */
  void (*on_complete)(void *host_request, uint64_t attempt, uint64_t first, uint64_t count,
                      int32_t status, uint64_t bytes, int32_t native_code, const char *text);

  /* A message arrived, whole. `bytes` are what the other host passed to notify() or post(). */
  void (*on_notification)(void *host, const void *bytes, size_t size);

  /* The peer's state changed. DOWN: all its pieces were or will be reported failed. */
  void (*on_peer)(void *host_peer, int32_t state, int32_t status, const char *reason);

  /* progress() has something to do; from any thread, cheap, never blocks. */
  void (*wake)(void *host);

  void (*log)(void *host, int32_t level, const char *file, int32_t line, const char *text);
  void (*count)(void *host, const char *counter, int64_t delta);
  const void *(*extension)(void *host, const char *name); /* "name/1"; NULL: not offered */
} nixl_host;

enum nixl_log_level {
  NIXL_LEVEL_TRACE = 0,
  NIXL_LEVEL_DEBUG = 1,
  NIXL_LEVEL_INFO = 2,
  NIXL_LEVEL_WARN = 3,
  NIXL_LEVEL_ERROR = 4
};

/* ---- an engine --------------------------------------------------------------------------- */

typedef struct nixl_engine_args { /* valid during create() only, but for `host` */
  uint32_t struct_size;
  uint32_t option_count;
  const nixl_host *host; /* outlives the engine */
  const char *agent;     /* name, not NUL-terminated: it may hold NULs */
  size_t agent_size;
  const char *const *option_names;
  const char *const *option_values;
  uint32_t progress_thread; /* 0: only callers' threads enter progress() */
  uint32_t threads_wanted;  /* the agent's num_threads */
} nixl_engine_args;

typedef struct nixl_engine_ops {
  uint32_t struct_size;
  uint32_t reserved;

  /* Facts of this engine, which may depend on what it found at run time. */
  void (*facts)(void *engine, nixl_facts *out);

  /* Life. shutdown() ends everything in flight (each piece is reported) within the deadline;
   * 0: nothing can land any more, NOT_QUIESCED (-23): it cannot promise. destroy() follows and
   * must not fail. after_fork(): in the child; touch nothing shared, forget descriptors. */
  int32_t (*shutdown)(void *engine, uint64_t deadline_ns, nixl_error *err);
  void (*destroy)(void *engine);
  void (*after_fork)(void *engine);

  /* Connections. local_info(): bytes that a peer's engine of this name needs; valid until
   * destroy(). connect() never blocks: the peer comes up later, or fails through on_peer.
   * disconnect(): pieces in flight are reported failed, the handle is gone afterwards. */
  int32_t (*local_info)(void *engine, const void **bytes, size_t *size, nixl_error *err);
  int32_t (*connect)(void *engine, const char *name, size_t name_size, const void *info,
                     size_t info_size, void *host_peer, void **peer, nixl_error *err);
  void (*disconnect)(void *engine, void *peer);

  /* Memory. register_memory(): all or none; handles[i] belongs to regions[i]. public_key():
   * bytes for peers, valid until deregistered. deregister(): 0 done; 1 ends later (the handle is
   * gone for the host all the same); NOT_QUIESCED by the deadline. load(): once per distinct key. */
  int32_t (*register_memory)(void *engine, const nixl_region *regions, uint64_t count,
                             void **handles, nixl_error *err);
  int32_t (*public_key)(void *engine, void *region, const void **bytes, size_t *size,
                        nixl_error *err);
  int32_t (*deregister)(void *engine, void *const *regions, uint64_t count, uint64_t deadline_ns,
                        nixl_error *err);
  int32_t (*load)(void *engine, void *peer, uint32_t kind, const void *key, size_t key_size,
                  void **remote, nixl_error *err);
  void (*unload)(void *engine, void *remote);
  int32_t (*allocate)(void *engine, uint32_t kind, uint64_t device, uint64_t size, void **addr,
                      nixl_error *err);
  void (*free_memory)(void *engine, void *addr);

  /* Requests. post() starts a slice: 0 all its pieces are done already (not reported again),
   * 1 they will be reported, or were; negative: nothing was started. cancel() asks: 0 nothing of
   * it is in flight, 1 the rest will be reported. release(): only when nothing is in flight. */
  int32_t (*prepare)(void *engine, const nixl_plan *plan, void *host_request, void **request,
                     nixl_error *err);
  int32_t (*post)(void *engine, void *request, const nixl_post *post, nixl_error *err);
  int32_t (*cancel)(void *engine, void *request, nixl_error *err);
  void (*release)(void *engine, void *request);

  /* 0 once nothing can land any more in `region` (NULL: any) from `peer` (NULL: any), here or
   * there; NOT_QUIESCED at the deadline, with who did not answer in the text. */
  int32_t (*quiesce)(void *engine, void *region, void *peer, uint64_t deadline_ns,
                     nixl_error *err);

  /* A message of its own; after all earlier ones to this peer. NULL: to the agent itself.
   * 0 or 1: taken; what cannot be delivered later is a matter of on_peer. */
  int32_t (*notify)(void *engine, void *peer, const void *bytes, size_t size, nixl_error *err);

  int32_t (*storage)(void *engine, uint32_t verb, const nixl_region *regions, uint64_t count,
                     nixl_storage_emit emit, void *context, nixl_error *err);

  int32_t (*cost)(void *engine, void *peer, const nixl_plan_summary *plan, nixl_cost *out,
                  nixl_error *err);

  /* Progress. Does what can be done within the budget and returns how much that was (0: idle).
   * arm(): 0 the wait descriptors will become readable when there is work; 1 there is work now.
   * wait_fds(): writes at most `capacity`, returns how many there are. next_timer(): when to call
   * progress() at the latest. */
  int64_t (*progress)(void *engine, uint64_t budget_ns);
  int32_t (*arm)(void *engine);
  uint32_t (*wait_fds)(void *engine, int32_t *fds, uint32_t capacity);
  uint64_t (*next_timer)(void *engine);

  const void *(*extension)(void *engine, const char *name); /* "name/1"; NULL: not offered */
} nixl_engine_ops;

/* Called once per finding, in words for people: "library", "/usr/lib/libfoo.so.1 (1.2)". What is
 * told as "warning" is a sentence about something to be mended. */
typedef void (*nixl_inspect_emit)(void *context, const char *what, const char *value);

typedef struct nixl_plugin {
  uint32_t struct_size;
  uint32_t abi_version; /* NIXL_PLUGIN_ABI_VERSION of the plugin's header */
  const char *name;     /* upper case, as passed to createBackend */
  const char *version;
  const char *summary;        /* one line for people */
  const nixl_option *options; /* ends with name == NULL; may be NULL */
  const nixl_facts *facts;    /* before an engine exists */

  /* 0: can run here; else the sentence that says what is missing and how to get it. */
  int32_t (*why_unusable)(nixl_error *err);

  /* Makes an engine and its table. Nothing may be thrown out of it. */
  int32_t (*create)(const nixl_engine_args *args, void **engine, const nixl_engine_ops **ops,
                    nixl_error *err);

  /* For tools. The environment variables that it reads; ends with name == NULL; may be NULL. */
  const nixl_option *variables;

  /* Tries out what an engine would need, and tells what it finds, also before it fails. 0: an
   * engine can be made; else the sentence. Called in a process made for it, which ends afterwards:
   * it may open libraries and devices, and leave them open. */
  int32_t (*inspect)(nixl_inspect_emit emit, void *context, nixl_error *err);
} nixl_plugin;

/* The exported symbol. `host_abi` is the library's version; NULL: "I cannot work with that". */
typedef const nixl_plugin *(*nixl_backend_init_function)(uint32_t host_abi);

#ifdef __cplusplus
}
#endif

#endif /* NIXL_PLUGIN_ABI_H */
