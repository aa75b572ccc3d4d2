# SPDX-License-Identifier: MIT
"""An engine in Python: what it adds to a forward pass, over flashmemory's C interface. Random numbers stand for a model."""
import argparse
import random
from ctypes import byref, c_float, c_int32, c_int64

import flashmemory as fm

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--library", help="libflashmemory_c.so; else the one that is installed, or $FLASHMEMORY_C")
parser.add_argument("--tokens", type=int, default=1024, help="of the prompt")
options = parser.parse_args()
LAYERS, HEADS, KV_HEADS, DIM, PIECE, STEPS = 2, 4, 2, 32, 128, 40
try:
    lib = fm.Library(options.library)
except OSError as why:
    raise SystemExit(f"example.py: {why}")
random.seed(1)


def noise(count):
    return (c_float * count)(*(random.gauss(0, 1) for _ in range(count)))


# Set-up: an indexer that needs no training, a store for what it reads, a policy, a selector.
lanes = (fm.PooledKeysLane * KV_HEADS)(*(fm.PooledKeysLane(layer=1, kv_head=h) for h in range(KV_HEADS)))
pooled = lib.make(fm.PooledKeysOptions, query_heads=HEADS, kv_heads=KV_HEADS, key_dim=DIM, lanes=lanes, num_lanes=KV_HEADS)
indexer = lib.open("indexer_pooled_keys", pooled)
shape = lib.make(fm.StoreOptions, layers=LAYERS, kv_heads=KV_HEADS, key_dim=DIM, value_dim=DIM, fast_bytes=8 << 20,
                 backing_bytes=32 << 20)
lib.indexer_reads(indexer, shape.index_keys)
store = lib.open("store_open", shape)
policy = lib.make(fm.Policy, interval=16)
selector = lib.open("selector_open", store, indexer, policy, None)
each = lib.make(fm.SequenceOptions)
lib.sequence_options_for(store, policy, c_int64(options.tokens + STEPS), c_int64(0), each)
sequence = fm.Sequence()
lib.sequence_open(store, each, byref(sequence))
lib.attach(selector, sequence, None)
room = lib.make(fm.AttentionOptions, query_heads=HEADS, max_tokens=PIECE, max_chunks=(options.tokens + STEPS) // 64 + 1)
attention = lib.open("attention_open", store, room)


def forward(position, tokens, phase):
    """One forward pass: what an engine adds to its own, once a layer, and once at the end."""
    item = fm.BatchItem(sequence, position, tokens, phase)
    how = lib.make(fm.AttendOptions, everything=phase != fm.DECODE)
    for layer in range(LAYERS):
        queries, keys, values = noise(tokens * HEADS * DIM), noise(tokens * KV_HEADS * DIM), noise(tokens * KV_HEADS * DIM)
        q, out = fm.tensor(queries, tokens, HEADS, DIM), fm.tensor(noise(tokens * HEADS * DIM), tokens, HEADS, DIM)
        k, v = fm.tensor(keys, tokens, KV_HEADS, DIM), fm.tensor(values, tokens, KV_HEADS, DIM)
        lib.observe_queries(selector, item, c_int64(1), c_int32(layer), fm.tensor(queries, tokens, HEADS * DIM), None)
        lib.append(store, item, c_int64(1), c_int32(layer), k, v, None)
        lib.observe_keys(selector, item, c_int64(1), c_int32(layer), k, None)
        lib.sparse_attend(attention, item, c_int64(1), c_int32(layer), q, out, how, None)
    lib.select_chunks(selector, item, c_int64(1), None)


for at in range(0, options.tokens, PIECE):
    count = min(PIECE, options.tokens - at)
    forward(at, count, fm.PROMPT if at + count < options.tokens else fm.PROMPT_END)
for step in range(STEPS):
    forward(options.tokens + step, 1, fm.DECODE)

info = lib.make(fm.SequenceInfo)
lib.sequence_get_info(store, sequence, info)
print(f"flashmemory {lib.version}: {info.tokens} tokens, {info.resident_chunks} of {info.complete_chunks + 1} chunks resident")
try:
    again = fm.tensor(noise(KV_HEADS * DIM), 1, KV_HEADS, DIM)
    lib.append(store, fm.BatchItem(sequence, 0, 1, fm.DECODE), c_int64(1), c_int32(0), again, again, None)
    raise SystemExit("example.py: a token that is not the next one was taken")
except fm.FlashMemoryError as refused:
    print("refused, as it should be:", refused)
for close, handle in (("attention_close", attention), ("selector_close", selector), ("store_close", store), ("indexer_close", indexer)):
    getattr(lib, close)(handle)
