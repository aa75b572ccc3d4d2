/* SPDX-License-Identifier: MIT
 * An engine in C: a prompt in pieces, decoding, and one planted needle that selection has to bring back. */
#include <flashmemory/c/flashmemory.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 2, HEADS = 4, KV_HEADS = 2, DIM = 64, PROMPT = 4096, PIECE = 512, STEPS = 128, NEEDLE = 1000 };

static void must(fm_status code, const char* what) {
  fm_fault fault;
  if (code == FM_OK) return;
  fm_last_fault(&fault);
  fprintf(stderr, "%s: %s\n", what, fault.text);
  exit(1);
}

/* Tensors are borrowed for a call; this one lies on the stack of its caller. */
static fm_tensor tensor(float* data, int64_t* shape, int ndim) {
  fm_tensor t;
  memset(&t, 0, sizeof(t));
  t.data = data;
  t.device.device_type = FM_CPU;
  t.ndim = ndim;
  t.dtype.code = FM_FLOAT, t.dtype.bits = 32, t.dtype.lanes = 1;
  t.shape = shape;
  return t;
}

static float noise(void) {
  static uint32_t x = 1;
  x = x * 1664525u + 1013904223u;
  return (float)(int32_t)x / 4294967296.0f;
}

static float q[PIECE * HEADS * DIM], k[PIECE * KV_HEADS * DIM], v[PIECE * KV_HEADS * DIM], out[PIECE * HEADS * DIM];

/* What a model would compute: noise, but for the needle's key, which decoding asks for. */
static void project(int64_t position, int32_t tokens, int asks) {
  int64_t i, t, h;
  for (i = 0; i < tokens * HEADS * DIM; ++i) q[i] = noise();
  for (i = 0; i < tokens * KV_HEADS * DIM; ++i) k[i] = noise(), v[i] = noise();
  for (t = 0; t < tokens; ++t)
    for (h = 0; h < HEADS; ++h) {
      if (asks) q[(t * HEADS + h) * DIM + 7] = 12;
      if (position + t == NEEDLE) k[(t * KV_HEADS + h / 2) * DIM + 7] = 12, v[(t * KV_HEADS + h / 2) * DIM] = 100;
    }
}

int main(void) {
  fm_store_options so;
  fm_pooled_keys_options po;
  fm_pooled_keys_lane lanes[KV_HEADS];
  fm_policy policy;
  fm_sequence_options each;
  fm_attention_options ao;
  fm_attend_options how;
  fm_store* store;
  fm_indexer* indexer;
  fm_selector* selector;
  fm_attention* attention;
  fm_batch_item item;
  fm_sequence_info info;
  int64_t at;
  int layer, found = 0;

  /* Set-up: an indexer that needs no training, a store for what it reads, a policy, a selector. */
  must(fm_init_pooled_keys_options(&po, sizeof(po)), "pooled keys");
  memset(lanes, 0, sizeof(lanes));
  for (layer = 0; layer < KV_HEADS; ++layer) lanes[layer].layer = 1, lanes[layer].kv_head = layer;
  po.query_heads = HEADS, po.kv_heads = KV_HEADS, po.key_dim = DIM, po.query_tokens = 1;
  po.lanes = lanes, po.num_lanes = KV_HEADS;
  must(fm_indexer_pooled_keys(&po, &indexer), "indexer");
  must(fm_init_store_options(&so, sizeof(so)), "store");
  so.layers = LAYERS, so.kv_heads = KV_HEADS, so.key_dim = so.value_dim = DIM;
  must(fm_indexer_reads(indexer, &so.index_keys), "index keys");
  so.fast_bytes = 8 << 20, so.backing_bytes = 32 << 20;
  must(fm_store_open(&so, &store), "store");
  must(fm_init_policy(&policy, sizeof(policy)), "policy");
  must(fm_selector_open(store, indexer, &policy, NULL, &selector), "selector");
  must(fm_init_sequence_options(&each, sizeof(each)), "sequence");
  must(fm_sequence_options_for(store, &policy, PROMPT + STEPS, 0, &each), "sequence");
  memset(&item, 0, sizeof(item));
  must(fm_sequence_open(store, &each, &item.sequence), "sequence");
  must(fm_attach(selector, item.sequence, NULL), "attach");
  must(fm_init_attention_options(&ao, sizeof(ao)), "attention");
  ao.query_heads = HEADS, ao.max_tokens = PIECE, ao.max_chunks = (PROMPT + STEPS) / 64 + 1;
  must(fm_attention_open(store, &ao, &attention), "attention");
  must(fm_init_attend_options(&how, sizeof(how)), "attend");

  for (at = 0; at < PROMPT + STEPS; at += item.num_tokens) {
    int64_t q_shape[3] = {0, HEADS, DIM}, kv_shape[3] = {0, KV_HEADS, DIM}, flat[2] = {0, HEADS * DIM};
    item.position = at;
    item.num_tokens = at < PROMPT ? PIECE : 1;
    item.phase = at >= PROMPT ? FM_DECODE : at + PIECE < PROMPT ? FM_PROMPT : FM_PROMPT_END;
    q_shape[0] = kv_shape[0] = flat[0] = item.num_tokens;
    how.everything = item.phase != FM_DECODE; /* a prompt attends to everything, decoding to what is resident */
    for (layer = 0; layer < LAYERS; ++layer) {
      fm_tensor tq = tensor(q, q_shape, 3), tk = tensor(k, kv_shape, 3), tv = tensor(v, kv_shape, 3),
                to = tensor(out, q_shape, 3), rows = tensor(q, flat, 2);
      project(at, item.num_tokens, at >= PROMPT - PIECE);
      must(fm_observe_queries(selector, &item, 1, layer, &rows, NULL), "observe_queries");
      must(fm_append(store, &item, 1, layer, &tk, &tv, NULL), "append");
      must(fm_observe_keys(selector, &item, 1, layer, &tk, NULL), "observe_keys");
      must(fm_sparse_attend(attention, &item, 1, layer, &tq, &to, &how, NULL), "sparse_attend");
    }
    must(fm_select_chunks(selector, &item, 1, NULL), "select_chunks");
    found += item.phase == FM_DECODE && out[0] > 50; /* the needle's value */
  }

  memset(&info, 0, sizeof(info));
  info.struct_size = sizeof(info);
  must(fm_sequence_get_info(store, item.sequence, &info), "info");
  printf("%d of %d tokens saw the needle, with %d of %d chunks resident\n", found, STEPS, (int)info.resident_chunks,
         (int)info.complete_chunks);
  must(fm_attention_close(attention), "attention");
  must(fm_selector_close(selector), "selector");
  must(fm_store_close(store), "store");
  must(fm_indexer_close(indexer), "indexer");
  return found != STEPS;
}
