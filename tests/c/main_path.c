/* SPDX-License-Identifier: MIT
 * The main path in C99, with checks of its own: an engine that opens a store, reads a prompt in pieces, decodes, forks, rolls
 * back, saves and loads. Returns 0 when all is as the header says. Also compiled as C++14. */
#include <flashmemory/c/flashmemory.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAYERS 2
#define HEADS 4
#define KV_HEADS 2
#define DIM 32
#define PROMPT 700
#define STEPS 90

static int failures = 0;

static void check(int holds, const char* what, int line) {
  fm_fault f;
  if (holds) return;
  fm_last_fault(&f);
  fprintf(stderr, "line %d: %s (last fault: %s: %s)\n", line, what, fm_status_name(f.code), f.text);
  ++failures;
}
#define CHECK(x) check((x), #x, __LINE__)

/* A number in (-1, 1) that only depends on where it stands. */
static float value(int64_t kind, int64_t layer, int64_t token, int64_t i) {
  uint64_t x = (uint64_t)(kind * 1000003 + layer * 10007 + token * 131 + i) * 0x9e3779b97f4a7c15u;
  x ^= x >> 29;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 32;
  return (float)(int32_t)(uint32_t)(x >> 8) / 2147483648.0f;
}

/* A tensor over memory of this program. */
typedef struct rows {
  fm_tensor tensor;
  int64_t shape[3];
  float data[512 * HEADS * DIM];
} rows;

static fm_tensor* fill(rows* r, int kind, int layer, int64_t first, int64_t tokens, int heads) {
  int64_t t, i;
  memset(&r->tensor, 0, sizeof(r->tensor));
  r->shape[0] = tokens;
  r->shape[1] = heads;
  r->shape[2] = DIM;
  r->tensor.data = r->data;
  r->tensor.device.device_type = FM_CPU;
  r->tensor.ndim = 3;
  r->tensor.dtype.code = FM_FLOAT;
  r->tensor.dtype.bits = 32;
  r->tensor.dtype.lanes = 1;
  r->tensor.shape = r->shape;
  for (t = 0; t < tokens; ++t)
    for (i = 0; i < heads * DIM; ++i) r->data[t * heads * DIM + i] = value(kind, layer, first + t, i);
  return &r->tensor;
}

static fm_store* store;
static fm_indexer* indexer;
static fm_selector* selector;
static fm_attention* attention;
static rows q, k, v, out;

/* One forward pass. */
static fm_status forward(fm_sequence s, int64_t position, int32_t tokens, int32_t phase) {
  fm_batch_item item;
  fm_attend_options how;
  fm_tensor flat;
  int64_t flat_shape[2];
  int layer;
  fm_status code = FM_OK;
  memset(&item, 0, sizeof(item));
  item.sequence = s;
  item.position = position;
  item.num_tokens = tokens;
  item.phase = phase;
  CHECK(fm_init_attend_options(&how, sizeof(how)) == FM_OK);
  how.everything = phase != FM_DECODE;
  for (layer = 0; layer < LAYERS && code == FM_OK; ++layer) {
    fill(&q, 1, layer, position, tokens, HEADS);
    fill(&k, 2, layer, position, tokens, KV_HEADS);
    fill(&v, 3, layer, position, tokens, KV_HEADS);
    fill(&out, 4, layer, position, tokens, HEADS);
    flat = q.tensor;
    flat.ndim = 2;
    flat.shape = flat_shape;
    flat_shape[0] = tokens;
    flat_shape[1] = HEADS * DIM;
    code = fm_observe_queries(selector, &item, 1, layer, &flat, NULL);
    if (code == FM_OK) code = fm_append(store, &item, 1, layer, &k.tensor, &v.tensor, NULL);
    if (code == FM_OK) code = fm_observe_keys(selector, &item, 1, layer, &k.tensor, NULL);
    if (code == FM_OK) code = fm_sparse_attend(attention, &item, 1, layer, &q.tensor, &out.tensor, &how, NULL);
  }
  return code == FM_OK ? fm_select_chunks(selector, &item, 1, NULL) : code;
}

int main(int argc, char** argv) {
  const char* session = argc > 1 ? argv[1] : NULL;
  fm_store_options so;
  fm_pooled_keys_options po;
  fm_pooled_keys_lane lane;
  fm_policy policy;
  fm_sequence_options each;
  fm_attention_options ao;
  fm_sequence s, child, loaded;
  fm_sequence_info info;
  fm_selection_report report;
  fm_store_usage usage;
  fm_managed_tensor* bytes = NULL;
  uint64_t fast, backing;
  int32_t ids[64], reads = -1;
  int64_t count = 0, at;

  CHECK(fm_abi_version() == FM_ABI_VERSION);
  CHECK(fm_version()[0] != 0);
  CHECK(fm_init_store_options(&so, sizeof(so)) == FM_OK);
  CHECK(fm_init_pooled_keys_options(&po, sizeof(po)) == FM_OK);
  memset(&lane, 0, sizeof(lane));
  lane.layer = 1;
  lane.kv_head = 0;
  po.query_heads = HEADS;
  po.kv_heads = KV_HEADS;
  po.key_dim = DIM;
  po.lanes = &lane;
  po.num_lanes = 1;
  CHECK(fm_indexer_pooled_keys(&po, &indexer) == FM_OK);
  so.layers = LAYERS;
  so.kv_heads = KV_HEADS;
  so.key_dim = so.value_dim = DIM;
  so.type = FM_F32;
  so.entries_per_chunk = 16;
  so.max_sequences = 4;
  CHECK(fm_indexer_reads(indexer, &so.index_keys) == FM_OK);
  CHECK(so.index_keys.lanes == 1);

  CHECK(fm_init_policy(&policy, sizeof(policy)) == FM_OK);
  policy.interval = 16;
  policy.budget_fraction = 0.25;
  CHECK(fm_init_sequence_options(&each, sizeof(each)) == FM_OK);
  each.max_tokens = PROMPT + STEPS + 100;
  each.max_resident_chunks = 20;
  CHECK(fm_store_bytes_for(&so, &each, 3, &fast, &backing) == FM_OK);
  so.fast_bytes = fast;
  so.backing_bytes = backing;
  CHECK(fm_store_open(&so, &store) == FM_OK);
  CHECK(fm_sequence_options_for(store, &policy, PROMPT + STEPS + 100, 0, &each) == FM_OK);
  CHECK(each.max_resident_chunks > 0 && each.max_resident_chunks <= 20);
  CHECK(fm_selector_open(store, indexer, &policy, NULL, &selector) == FM_OK);
  CHECK(fm_selector_reads(selector, 1, 1, &reads) == FM_OK && reads == 1);
  CHECK(fm_selector_reads(selector, 0, 1, &reads) == FM_OK && reads == 0);
  CHECK(fm_init_attention_options(&ao, sizeof(ao)) == FM_OK);
  ao.query_heads = HEADS;
  ao.max_tokens = 256;
  ao.max_chunks = 64;
  CHECK(fm_attention_open(store, &ao, &attention) == FM_OK);

  CHECK(fm_sequence_open(store, &each, &s) == FM_OK);
  CHECK(fm_attach(selector, s, NULL) == FM_OK);
  for (at = 0; at < PROMPT; at += 256)
    CHECK(forward(s, at, (int32_t)(PROMPT - at < 256 ? PROMPT - at : 256), PROMPT - at <= 256 ? FM_PROMPT_END : FM_PROMPT) ==
          FM_OK);
  for (at = PROMPT; at < PROMPT + STEPS; ++at) CHECK(forward(s, at, 1, FM_DECODE) == FM_OK);

  memset(&info, 0, sizeof(info));
  info.struct_size = sizeof(info);
  CHECK(fm_sequence_get_info(store, s, &info) == FM_OK);
  CHECK(info.tokens == PROMPT + STEPS);
  CHECK(info.resident_chunks > 3 && info.resident_chunks <= each.max_resident_chunks);
  CHECK(fm_sequence_resident(store, s, ids, 64, &count) == FM_OK);
  CHECK(count == info.resident_chunks && ids[0] == 0);
  memset(&report, 0, sizeof(report));
  report.struct_size = sizeof(report);
  CHECK(fm_report(selector, s, &report) == FM_OK);
  CHECK(report.refreshes >= 5 && report.chosen_chunks > 0);

  CHECK(fm_sequence_fork(store, s, &each, &child) == FM_OK);
  CHECK(fm_attach_fork(selector, s, child, NULL) == FM_OK);
  CHECK(forward(child, PROMPT + STEPS, 1, FM_DECODE) == FM_OK);
  CHECK(fm_sequence_truncate(store, child, PROMPT + STEPS) == FM_OK);
  CHECK(forward(child, PROMPT + STEPS, 1, FM_DECODE) == FM_OK);
  CHECK(fm_detach(selector, child) == FM_OK);
  CHECK(fm_sequence_close(store, child) == FM_OK);
  CHECK(fm_sequence_get_info(store, child, &info) == FM_STALE_SEQUENCE);

  CHECK(fm_sequence_read_chunk(store, s, 1, &bytes) == FM_OK);
  if (bytes) {
    CHECK(bytes->dl_tensor.ndim == 1 && bytes->dl_tensor.shape[0] == LAYERS * KV_HEADS * 16 * DIM * 2 * 4);
    CHECK(((const float*)bytes->dl_tensor.data)[0] == value(2, 0, 16, 0));
    bytes->deleter(bytes);
  }
  if (session) {
    CHECK(fm_session_save(store, s, session, selector, "weights 1") == FM_OK);
    CHECK(fm_session_load(store, session, selector, NULL, "weights 2", NULL, &loaded) != FM_OK);
    CHECK(fm_session_load(store, session, selector, NULL, "weights 1", NULL, &loaded) == FM_OK);
    CHECK(forward(loaded, PROMPT + STEPS, 1, FM_DECODE) == FM_OK);
    CHECK(fm_sequence_close(store, loaded) == FM_OK);
  }
  memset(&usage, 0, sizeof(usage));
  usage.struct_size = sizeof(usage);
  CHECK(fm_store_get_usage(store, &usage) == FM_OK);
  CHECK(usage.sequences == 1 && usage.fast_bytes <= fast && usage.recalls > 4);

  CHECK(fm_store_close(store) == FM_IN_USE);
  CHECK(fm_indexer_close(indexer) == FM_IN_USE);
  CHECK(fm_attention_close(attention) == FM_OK);
  CHECK(fm_selector_close(selector) == FM_OK);
  CHECK(fm_store_close(store) == FM_OK);
  CHECK(fm_indexer_close(indexer) == FM_OK);
  CHECK(fm_store_close(store) == FM_BAD_HANDLE);
  printf("%d failures\n", failures);
  return failures != 0;
}
