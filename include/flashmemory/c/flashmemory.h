/* SPDX-License-Identifier: MIT
 *
 * flashmemory for C, and for whatever calls C: Rust, Go, Python by ctypes. Compiles as C99 and as C++14. docs/c_api.md has the
 * whole picture; what a call does in detail is said where the C++ header says it.
 *
 * Status. Every call returns FM_OK or why not; no exception crosses this line and nothing aborts. fm_last_fault() tells
 * more of the last call of this thread that did not return FM_OK. On an error a call has changed nothing, unless it says so.
 *
 * Handles. Objects are named by pointers that point to nothing. A null, closed or foreign one is FM_BAD_HANDLE. Close in the
 * reverse order of opening: an object that others stand on is FM_IN_USE.
 *
 * Threads. Any thread may call. Two calls that change one object at the same time are not served: the later one is FM_BUSY and
 * has done nothing. Selectors and attention use their store; see each call.
 *
 * Structs begin with their size, which the fm_init_...() functions set together with the defaults, so that programs that were
 * compiled with an older header go on working.
 *
 * Step calls - those marked so - do not allocate and on the CPU do all their work before they return.
 */
#ifndef FLASHMEMORY_C_FLASHMEMORY_H
#define FLASHMEMORY_C_FLASHMEMORY_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define FM_API __attribute__((visibility("default")))
#else
#define FM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** What this header describes; fm_abi_version() is what the library has. A library serves headers up to its own. */
#define FM_ABI_VERSION 1

/* ------------------------------------------------------------------------------------------------------- status */

/** FM_OK or what went wrong; the first ones are flashmemory::status. */
typedef int32_t fm_status;
enum {
  FM_OK = 0,
  FM_BAD_SHAPE,
  FM_BAD_DTYPE,
  FM_BAD_ARGUMENT,
  FM_NULL_DATA,
  FM_UNKNOWN_SEQUENCE,
  FM_STALE_SEQUENCE,
  FM_OUT_OF_ORDER,
  FM_OUT_OF_RANGE,
  FM_SEQUENCE_FULL,
  FM_BUDGET_EXCEEDED,
  FM_NOT_RESIDENT,
  FM_INDEX_KEYS_MISSING,
  FM_HIDDEN_MISSING,
  FM_NOT_FINITE,
  FM_WORKSPACE_SMALL,
  FM_CORRUPT_CHUNK,
  FM_IO_ERROR,
  FM_STALE_SLOT,
  FM_UNSUPPORTED,
  FM_CUDA_ERROR,
  FM_PENDING,
  FM_TIMED_OUT,
  FM_BAD_HANDLE = 100, /**< null, closed, of another kind, or of another library */
  FM_BUSY,             /**< another thread is in a call with this object */
  FM_IN_USE,           /**< other objects stand on it */
  FM_NO_MEMORY,        /**< the process has no more, or there are too many objects */
  FM_EXCEPTION         /**< a callback of the engine's threw */
};

/** Details of a fault. Numbers that do not apply are -1. */
typedef struct fm_fault {
  fm_status code;
  int32_t os_error; /**< errno of a failed system call; with FM_CUDA_ERROR the cudaError_t */
  int64_t sequence, chunk, layer, lane;
  int64_t expected; /**< what the call wanted: a position, an extent, a count or bytes */
  int64_t actual;   /**< what it found instead */
  char text[512];   /**< one sentence, ended by 0 */
} fm_fault;

/** The last call of this thread that did not return FM_OK; code FM_OK if there was none. */
FM_API void fm_last_fault(fm_fault* out);
/** The enumerator's name, e.g. "corrupt_chunk". Never null. */
FM_API const char* fm_status_name(fm_status code);
/** Version of the library that was loaded, e.g. "0.2.0". */
FM_API const char* fm_version(void);
/** FM_ABI_VERSION of the library that was loaded. */
FM_API int32_t fm_abi_version(void);

/* ------------------------------------------------------------------------------------------------------ tensors */

/** DLPack's codes. */
enum { FM_INT = 0, FM_UINT = 1, FM_FLOAT = 2, FM_BFLOAT = 4, FM_FLOAT8_E4M3FN = 10 };
enum { FM_CPU = 1, FM_CUDA = 2, FM_CUDA_HOST = 3, FM_CUDA_MANAGED = 13 };

/** Byte for byte a DLTensor (DLPack 0.5 and later): a pointer to one may be cast. Borrowed: until the call returns on the CPU,
 *  until `stream` has passed the call on CUDA. Strides count elements; null strides mean compact. */
typedef struct fm_tensor {
  void* data;
  struct {
    int32_t device_type, device_id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
} fm_tensor;

/** Byte for byte a DLManagedTensor: what the library hands over, to be freed by its deleter, once, on any thread. */
typedef struct fm_managed_tensor {
  fm_tensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(struct fm_managed_tensor* self);
} fm_managed_tensor;

/** Element type of stored K and V. */
typedef int32_t fm_dtype;
enum { FM_F32 = 0, FM_BF16 = 1, FM_F16 = 2 };

/* -------------------------------------------------------------------------------------------------------- store */

typedef struct fm_store fm_store;
typedef struct fm_indexer fm_indexer;
typedef struct fm_selector fm_selector;
typedef struct fm_attention fm_attention;

/** Index keys of a store; see flashmemory::index_key_geometry. */
typedef struct fm_index_key_geometry {
  int32_t lanes, dim;
  int32_t type; /**< 0 e4m3, 1 bf16, 2 f16, 3 int8, 4 mxfp4 */
  int32_t tokens_per_key;
  int32_t layout; /**< 0 interleaved, 1 planar */
} fm_index_key_geometry;

/** How an engine's threads work for the CPU backend; `run` null = OpenMP's, or this thread with `concurrency` 1. `run` calls
 *  task(task_context, i) once for every i in [0, count) and returns when all have returned. */
typedef struct fm_threads {
  void* context;
  void (*run)(void* context, int32_t count, void (*task)(void* task_context, int32_t index), void* task_context);
  int32_t concurrency;
} fm_threads;

/** A store's shape and budgets; see flashmemory::store_options and kv_geometry. */
typedef struct fm_store_options {
  size_t struct_size;
  int32_t layers, kv_heads, key_dim, value_dim;
  fm_dtype type;
  int32_t entries_per_chunk;
  fm_index_key_geometry index_keys;
  uint64_t fast_bytes;    /**< budget of the tier that attention reads */
  uint64_t backing_bytes; /**< budget of the complete copy */
  int32_t max_sequences;
  int32_t cuda;             /**< 1 = slots in device memory */
  int32_t device;           /**< CUDA ordinal */
  int32_t deadline_ms;      /**< longest wait for the device */
  const char* backing_path; /**< null = host memory, else beside this path, which must not exist */
  int64_t transition_chunks;
  int32_t verify_ram, scrub;
} fm_store_options;

FM_API fm_status fm_init_store_options(fm_store_options* out, size_t struct_size);
/** Opens a store. With `cuda` in a library that was built without CUDA: FM_UNSUPPORTED. */
FM_API fm_status fm_store_open(const fm_store_options* options, fm_store** out);
FM_API fm_status fm_store_close(fm_store* store);

/** What a store occupies and has done. */
typedef struct fm_store_usage {
  size_t struct_size;
  uint64_t fast_bytes, fast_peak_bytes, fast_budget_bytes, backing_bytes, backing_budget_bytes;
  int64_t sequences;
  int64_t recalls, recalls_failed, chunks_recalled, bytes_recalled, chunks_unreadable, chunks_bad, admissions_refused;
  int64_t faults;
} fm_store_usage;

FM_API fm_status fm_store_get_usage(fm_store* store, fm_store_usage* out);

/* ---------------------------------------------------------------------------------------------------- sequences */

/** A sequence of a store. Outlives it harmlessly: then FM_STALE_SEQUENCE. */
typedef struct fm_sequence {
  uint32_t index, generation;
} fm_sequence;

/** See flashmemory::sequence_options. */
typedef struct fm_sequence_options {
  size_t struct_size;
  int64_t max_tokens, max_resident_chunks;
  int32_t sink_chunks, recent_chunks;
} fm_sequence_options;

/** See flashmemory::selection_policy. */
typedef struct fm_policy {
  size_t struct_size;
  int32_t mode; /**< 0 everything, 1 budget, 2 threshold */
  int32_t interval, sink_chunks, recent_chunks;
  double budget_fraction;
  int64_t max_chunks;
  uint64_t budget_bytes;
  int64_t min_chunks;
  float threshold, hysteresis, hold;
  int32_t select_in_prompts;
  float fallback_max_dropped, fallback_min_attention_mass, fallback_widen_factor;
  int32_t fallback_patience, fallback_recover_after;
} fm_policy;

FM_API fm_status fm_init_policy(fm_policy* out, size_t struct_size);
FM_API fm_status fm_init_sequence_options(fm_sequence_options* out, size_t struct_size);
/** The options that serve `policy` for up to `max_tokens` tokens of `store`; see sequence_options_for(). `out` is initialised. */
FM_API fm_status fm_sequence_options_for(fm_store* store, const fm_policy* policy, int64_t max_tokens,
                                         int64_t late_tokens, fm_sequence_options* out);
/** Budgets with which a store of `options` holds `sequences` sequences of `each`; see store_bytes_for(). */
FM_API fm_status fm_store_bytes_for(const fm_store_options* options, const fm_sequence_options* each, int32_t sequences,
                                    uint64_t* fast_bytes, uint64_t* backing_bytes);

FM_API fm_status fm_sequence_open(fm_store* store, const fm_sequence_options* options, fm_sequence* out);
FM_API fm_status fm_sequence_fork(fm_store* store, fm_sequence parent, const fm_sequence_options* options,
                                  fm_sequence* out);
FM_API fm_status fm_sequence_set_quota(fm_store* store, fm_sequence sequence, int64_t max_resident_chunks);
/** Step call. Drops tokens from `tokens` on. */
FM_API fm_status fm_sequence_truncate(fm_store* store, fm_sequence sequence, int64_t tokens);
FM_API fm_status fm_sequence_close(fm_store* store, fm_sequence sequence);

/** See flashmemory::sequence_info. */
typedef struct fm_sequence_info {
  size_t struct_size;
  int64_t tokens, complete_chunks, resident_chunks, bad_chunks;
  uint64_t slot_bytes, index_key_bytes, table_bytes, backing_bytes;
} fm_sequence_info;

FM_API fm_status fm_sequence_get_info(fm_store* store, fm_sequence sequence, fm_sequence_info* out);
/** Ids of the resident chunks, ascending, as many as `room`; how many there are in `*count`. */
FM_API fm_status fm_sequence_resident(fm_store* store, fm_sequence sequence, int32_t* ids, int64_t room, int64_t* count);
/** A copy of one chunk in chunk_layout, [chunk bytes] of FM_UINT 8 in host memory, whichever tier has it. The caller owns it. */
FM_API fm_status fm_sequence_read_chunk(fm_store* store, fm_sequence sequence, int32_t chunk, fm_managed_tensor** out);

/* -------------------------------------------------------------------------------------------------- forward pass */

/** What an item's tokens are to selection. */
enum { FM_DECODE = 0, FM_PROMPT = 1, FM_PROMPT_END = 2 };

/** One sequence's part of a forward pass; {{UINT32_MAX, 0}, ...} is empty. See flashmemory::batch_item. */
typedef struct fm_batch_item {
  fm_sequence sequence;
  int64_t position;
  int32_t num_tokens;
  int32_t phase;
} fm_batch_item;

/** Step call. Adds one layer's K [entries, kv_heads, key_dim] and V [entries, kv_heads, value_dim].
 *  \param stream  of CUDA stores a CUDA stream, by its value; null for stores in host memory */
FM_API fm_status fm_append(fm_store* store, const fm_batch_item* items, int64_t num_items, int32_t layer,
                           const fm_tensor* k, const fm_tensor* v, void* stream);
/** Step call. Adds index keys of an engine that makes its own, [count, bytes of a key] of FM_UINT 8. */
FM_API fm_status fm_append_index_keys(fm_store* store, fm_sequence sequence, int32_t lane, int64_t first_key,
                                      const fm_tensor* keys, void* stream);

/* ------------------------------------------------------------------------------------------------------ indexers */

/** A trained dual encoder from its file; see load_dual_encoder(). */
FM_API fm_status fm_indexer_load(const char* path, fm_indexer** out);
/** What the file says it was trained for. `out` is initialised. */
FM_API fm_status fm_recommended_policy(const char* path, fm_policy* out);
/** Newest chunks first. */
FM_API fm_status fm_indexer_recency(fm_indexer** out);
/** Upper bounds of attention; host stores only. See flashmemory::quest_indexer. */
FM_API fm_status fm_indexer_quest(const fm_store_options* geometry, int32_t query_heads, int32_t max_sequences,
                                  int64_t max_chunks, float softmax_scale, fm_indexer** out);

/** See flashmemory::pooled_keys_lane. Arrays are copied. */
typedef struct fm_pooled_keys_lane {
  int32_t layer, kv_head;
  const int32_t* query_heads; /**< null = the whole group */
  int32_t num_query_heads;
  const float* key_projection;   /**< [dim, key_dim] or null */
  const float* query_projection; /**< [dim, key_dim] or null */
} fm_pooled_keys_lane;

/** See flashmemory::pooled_keys_config. */
typedef struct fm_pooled_keys_options {
  size_t struct_size;
  int32_t query_heads, kv_heads, key_dim, dim, tokens_per_key;
  int32_t type; /**< as in fm_index_key_geometry */
  int32_t query_tokens;
  float softmax_scale;
  int32_t uncounted_sink_chunks, uncounted_recent_chunks;
  const fm_pooled_keys_lane* lanes;
  int64_t num_lanes;
} fm_pooled_keys_options;

FM_API fm_status fm_init_pooled_keys_options(fm_pooled_keys_options* out, size_t struct_size);
/** The model's own queries against means of its keys, untrained. */
FM_API fm_status fm_indexer_pooled_keys(const fm_pooled_keys_options* options, fm_indexer** out);

/** What an indexer of the engine's own wants to see of the newest token. */
typedef struct fm_query_tap {
  int32_t layer;
  int32_t kind;  /**< 0 hidden states, 1 queries, 2 keys */
  int32_t width; /**< floats */
} fm_query_tap;

/** One sequence to be scored. */
typedef struct fm_score_request {
  fm_sequence sequence;
  int64_t position; /**< of the newest token */
  int64_t chunks;   /**< complete ones, [0, chunks) */
  int64_t num_queries;
  const float* const* queries; /**< [num_queries], each [width] */
} fm_score_request;

/** Writes scores [request->chunks], higher is needed more, and returns FM_OK or why not. It may not call the library with the
 *  store or selector that it is called for: that is FM_BUSY. */
typedef fm_status (*fm_score_callback)(void* context, const fm_score_request* request, float* scores);

/** An indexer of the engine's own; host stores only.
 *  \param log_odds  whether scores are log-odds of "needed" */
FM_API fm_status fm_indexer_callback(fm_score_callback score, void* context, const fm_query_tap* taps, int64_t num_taps,
                                     int32_t log_odds, fm_indexer** out);
/** Index keys that a store needs for it; 0 lanes = none. */
FM_API fm_status fm_indexer_reads(fm_indexer* index, fm_index_key_geometry* out);
FM_API fm_status fm_indexer_close(fm_indexer* index);

/* ----------------------------------------------------------------------------------------------------- selection */

/** See flashmemory::selector_options. */
typedef struct fm_selector_options {
  size_t struct_size;
  int32_t max_sequences, max_rollback_tokens;
  int32_t stagger;
  int32_t overlapped; /**< apply_mode */
  int32_t max_staleness;
  int32_t late; /**< 0 keep, 1 wait, 2 fail */
  int32_t concurrent_recalls;
  int32_t deadline_ms;
  fm_threads threads;
} fm_selector_options;

FM_API fm_status fm_init_selector_options(fm_selector_options* out, size_t struct_size);
/** One selector serves one store and one indexer, which cannot be closed before it. `options` null = defaults. */
FM_API fm_status fm_selector_open(fm_store* store, fm_indexer* index, const fm_policy* policy,
                                  const fm_selector_options* options, fm_selector** out);
FM_API fm_status fm_selector_close(fm_selector* select);
/** \param policy  of this sequence alone; null = the selector's */
FM_API fm_status fm_attach(fm_selector* select, fm_sequence sequence, const fm_policy* policy);
FM_API fm_status fm_attach_fork(fm_selector* select, fm_sequence parent, fm_sequence child, const fm_policy* policy);
FM_API fm_status fm_detach(fm_selector* select, fm_sequence sequence);
/** 1 if `layer` has to be shown: kind 0 to fm_observe(), 1 to fm_observe_queries(), 2 to fm_observe_keys(); else 0. */
FM_API fm_status fm_selector_reads(fm_selector* select, int32_t layer, int32_t kind, int32_t* out);

/** Step calls. Show one layer's hidden states [tokens, width], queries [tokens, heads * key_dim], keys [tokens, kv_heads,
 *  key_dim]. Layers that no tap reads are ignored. */
FM_API fm_status fm_observe(fm_selector* select, const fm_batch_item* items, int64_t num_items, int32_t layer,
                            const fm_tensor* hidden, void* stream);
FM_API fm_status fm_observe_queries(fm_selector* select, const fm_batch_item* items, int64_t num_items, int32_t layer,
                                    const fm_tensor* queries, void* stream);
FM_API fm_status fm_observe_keys(fm_selector* select, const fm_batch_item* items, int64_t num_items, int32_t layer,
                                 const fm_tensor* keys, void* stream);
/** Step call, the first of two: once after the last layer. */
FM_API fm_status fm_select_chunks(fm_selector* select, const fm_batch_item* items, int64_t num_items, void* stream);
/** Step call. */
FM_API fm_status fm_request_refresh(fm_selector* select, fm_sequence sequence);
/** Step call; see fallback_policy. */
FM_API fm_status fm_report_attention_mass(fm_selector* select, fm_sequence sequence, float mass);

/** The last refresh of a sequence; see flashmemory::selection_report. */
typedef struct fm_selection_report {
  size_t struct_size;
  int32_t reason; /**< 0 none, 1 warm start, 2 interval, 3 requested, 4 end of a prompt, 5 piece of a prompt */
  int32_t stage;  /**< 0 normal, 1 widened, 2 everything */
  int64_t position, complete_chunks, budget, chosen_chunks, refreshes, staleness;
  int64_t hits, recalled, refused, evicted, bytes, unreadable;
  double score_seconds, recall_seconds;
} fm_selection_report;

FM_API fm_status fm_report(fm_selector* select, fm_sequence sequence, fm_selection_report* out);

/* ----------------------------------------------------------------------------------------------------- attention */

/** Capacities of one call. */
typedef struct fm_attention_options {
  size_t struct_size;
  int32_t query_heads;
  int64_t max_tokens; /**< of all items of a call together */
  int64_t max_items;
  int64_t max_chunks; /**< of one sequence, resident or not */
  fm_threads threads;
} fm_attention_options;

FM_API fm_status fm_init_attention_options(fm_attention_options* out, size_t struct_size);
/** Attention over a store with scratch of its own. One object serves one call at a time; several may share a store. */
FM_API fm_status fm_attention_open(fm_store* store, const fm_attention_options* options, fm_attention** out);
FM_API fm_status fm_attention_close(fm_attention* attention);

/** See flashmemory::attend_options. */
typedef struct fm_attend_options {
  size_t struct_size;
  float softmax_scale;          /**< 0 = 1/sqrt(key_dim) */
  float logit_soft_cap;         /**< 0 = none */
  const fm_tensor* sink_logits; /**< [query heads] f32 or null */
  const fm_tensor* lse;         /**< [tokens, query heads] f32, written, or null */
  int32_t everything;           /**< 1 = chunks that are not resident too */
  int32_t leave_out_unreadable;
  int64_t* left_out; /**< or null */
} fm_attend_options;

FM_API fm_status fm_init_attend_options(fm_attend_options* out, size_t struct_size);
/** Step call, the second of two: once per layer. Beside other calls that only read the store.
 *  \param q    [tokens, query heads, key_dim]
 *  \param out  [tokens, query heads, value_dim], written
 *  \param options  null = defaults */
FM_API fm_status fm_sparse_attend(fm_attention* attention, const fm_batch_item* items, int64_t num_items, int32_t layer,
                                  const fm_tensor* q, const fm_tensor* out, const fm_attend_options* options, void* stream);

/* ------------------------------------------------------------------------------------------------------ sessions */

/** Saves a sequence to a file; see save_session().
 *  \param select     its cadence goes with it; or null
 *  \param model_tag  names the weights; null = none */
FM_API fm_status fm_session_save(fm_store* store, fm_sequence sequence, const char* path, fm_selector* select,
                                 const char* model_tag);
/** Opens a sequence with what was saved; see load_session().
 *  \param select   attaches it to this; or null
 *  \param options  null = those that were saved
 *  \param policy   of this sequence alone; null = the selector's */
FM_API fm_status fm_session_load(fm_store* store, const char* path, fm_selector* select,
                                 const fm_sequence_options* options, const char* model_tag, const fm_policy* policy,
                                 fm_sequence* out);

#ifdef __cplusplus
}
#endif

#endif
