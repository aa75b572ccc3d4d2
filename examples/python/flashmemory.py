# SPDX-License-Identifier: MIT
"""flashmemory from Python by ctypes: no packages, no compiler. To be copied beside an engine."""
import ctypes
import ctypes.util
import os
import sys
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint8
from ctypes import c_uint16, c_uint32, c_uint64, c_void_p, sizeof

DECODE, PROMPT, PROMPT_END = 0, 1, 2
F32, BF16, F16 = 0, 1, 2


class FlashMemoryError(RuntimeError):
    """What a call did not do, and why. `code` is the status, `name` what it is called."""

    def __init__(self, code, name, text):
        super().__init__(f"{name}: {text}")
        self.code, self.name = code, name


def _struct(name, *fields):
    return type(name, (Structure,), {"_fields_": list(fields)})


Fault = _struct("Fault", ("code", c_int32), ("os_error", c_int32), ("sequence", c_int64), ("chunk", c_int64), ("layer", c_int64),
                ("lane", c_int64), ("expected", c_int64), ("actual", c_int64), ("text", c_char * 512))
Device = _struct("Device", ("device_type", c_int32), ("device_id", c_int32))
DataType = _struct("DataType", ("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16))
Tensor = _struct("Tensor", ("data", c_void_p), ("device", Device), ("ndim", c_int32), ("dtype", DataType),
                 ("shape", POINTER(c_int64)), ("strides", POINTER(c_int64)), ("byte_offset", c_uint64))
IndexKeys = _struct("IndexKeys", ("lanes", c_int32), ("dim", c_int32), ("type", c_int32), ("tokens_per_key", c_int32),
                    ("layout", c_int32))
Threads = _struct("Threads", ("context", c_void_p), ("run", c_void_p), ("concurrency", c_int32))
StoreOptions = _struct("StoreOptions", ("struct_size", c_size_t), ("layers", c_int32), ("kv_heads", c_int32), ("key_dim", c_int32),
                       ("value_dim", c_int32), ("type", c_int32), ("entries_per_chunk", c_int32), ("index_keys", IndexKeys),
                       ("fast_bytes", c_uint64), ("backing_bytes", c_uint64), ("max_sequences", c_int32), ("cuda", c_int32),
                       ("device", c_int32), ("deadline_ms", c_int32), ("backing_path", c_char_p), ("transition_chunks", c_int64),
                       ("verify_ram", c_int32), ("scrub", c_int32))
Sequence = _struct("Sequence", ("index", c_uint32), ("generation", c_uint32))
SequenceOptions = _struct("SequenceOptions", ("struct_size", c_size_t), ("max_tokens", c_int64), ("max_resident_chunks", c_int64),
                          ("sink_chunks", c_int32), ("recent_chunks", c_int32))
Policy = _struct("Policy", ("struct_size", c_size_t), ("mode", c_int32), ("interval", c_int32), ("sink_chunks", c_int32),
                 ("recent_chunks", c_int32), ("budget_fraction", c_double), ("max_chunks", c_int64), ("budget_bytes", c_uint64),
                 ("min_chunks", c_int64), ("threshold", c_float), ("hysteresis", c_float), ("hold", c_float),
                 ("select_in_prompts", c_int32), ("fallback_max_dropped", c_float), ("fallback_min_attention_mass", c_float),
                 ("fallback_widen_factor", c_float), ("fallback_patience", c_int32), ("fallback_recover_after", c_int32))
SequenceInfo = _struct("SequenceInfo", ("struct_size", c_size_t), ("tokens", c_int64), ("complete_chunks", c_int64),
                       ("resident_chunks", c_int64), ("bad_chunks", c_int64), ("slot_bytes", c_uint64),
                       ("index_key_bytes", c_uint64), ("table_bytes", c_uint64), ("backing_bytes", c_uint64))
BatchItem = _struct("BatchItem", ("sequence", Sequence), ("position", c_int64), ("num_tokens", c_int32), ("phase", c_int32))
PooledKeysLane = _struct("PooledKeysLane", ("layer", c_int32), ("kv_head", c_int32), ("query_heads", POINTER(c_int32)),
                         ("num_query_heads", c_int32), ("key_projection", POINTER(c_float)), ("query_projection", POINTER(c_float)))
PooledKeysOptions = _struct("PooledKeysOptions", ("struct_size", c_size_t), ("query_heads", c_int32), ("kv_heads", c_int32),
                            ("key_dim", c_int32), ("dim", c_int32), ("tokens_per_key", c_int32), ("type", c_int32),
                            ("query_tokens", c_int32), ("softmax_scale", c_float), ("uncounted_sink_chunks", c_int32),
                            ("uncounted_recent_chunks", c_int32), ("lanes", POINTER(PooledKeysLane)), ("num_lanes", c_int64))
AttentionOptions = _struct("AttentionOptions", ("struct_size", c_size_t), ("query_heads", c_int32), ("max_tokens", c_int64),
                           ("max_items", c_int64), ("max_chunks", c_int64), ("threads", Threads))
AttendOptions = _struct("AttendOptions", ("struct_size", c_size_t), ("softmax_scale", c_float), ("logit_soft_cap", c_float),
                        ("sink_logits", POINTER(Tensor)), ("lse", POINTER(Tensor)), ("everything", c_int32),
                        ("leave_out_unreadable", c_int32), ("left_out", POINTER(c_int64)))
_INIT = {StoreOptions: "store_options", SequenceOptions: "sequence_options", Policy: "policy", PooledKeysOptions: "pooled_keys_options",
         AttentionOptions: "attention_options", AttendOptions: "attend_options"}


def tensor(values, *shape):
    """A tensor over memory that Python holds: f32 of ctypes or `array`, or whatever has NumPy's or PyTorch's shape, dtype and
    address. It keeps `values` alive; on CUDA keep the tensor until its stream has passed the call."""
    t = Tensor()
    t._values = values
    t.device = Device(1, 0)
    t.dtype = DataType(2, 32, 1)
    if hasattr(values, "__array_interface__"):  # NumPy
        facts = values.__array_interface__
        kind = {"<f4": (2, 32), "<f2": (2, 16), "|u1": (1, 8), "|i1": (0, 8)}.get(facts["typestr"])
        if kind is None:
            raise TypeError(f"arrays of {facts['typestr']} are not taken; little-endian f4, f2, u1 and i1 are")
        address, own, item = facts["data"][0], facts["shape"], values.itemsize
        strides = facts["strides"] and [s // item for s in facts["strides"]]
        t.dtype = DataType(*kind, 1)
    elif hasattr(values, "data_ptr"):  # PyTorch
        kind = {"torch.float32": (2, 32), "torch.float16": (2, 16), "torch.bfloat16": (4, 16)}.get(str(values.dtype))
        if kind is None:
            raise TypeError(f"tensors of {values.dtype} are not taken; float32, float16 and bfloat16 are")
        address, own, strides = values.data_ptr(), tuple(values.shape), values.stride()
        t.dtype = DataType(*kind, 1)
        if values.is_cuda:
            t.device = Device(2, values.device.index or 0)
    else:
        buffer = values if isinstance(values, ctypes.Array) else (c_float * len(values)).from_buffer(values)
        address, own, strides = ctypes.addressof(buffer), (len(buffer),), None
        if shape:
            count = 1
            for extent in shape:
                count *= extent
            if count > len(buffer):
                raise ValueError(f"{len(buffer)} numbers are less than {shape}")
            own = shape
    t.data, t.ndim = address, len(own)
    t._shape = (c_int64 * len(own))(*own)  # lives as long as the tensor
    t.shape = ctypes.cast(t._shape, POINTER(c_int64))
    if strides:
        t._strides = (c_int64 * len(own))(*strides)
        t.strides = ctypes.cast(t._strides, POINTER(c_int64))
    return t


class Library:
    """libflashmemory_c. Calls are those of flashmemory/c/flashmemory.h without `fm_`; they raise FlashMemoryError."""

    abi = 1

    def __init__(self, path=None):
        path = path or os.environ.get("FLASHMEMORY_C") or ctypes.util.find_library("flashmemory_c")
        if not path:
            raise OSError("libflashmemory_c is not installed where the loader looks: name the file in FLASHMEMORY_C, or build "
                          "flashmemory with -DFLASHMEMORY_C=ON")
        self._c = ctypes.CDLL(path)
        self._c.fm_version.restype = self._c.fm_status_name.restype = c_char_p
        self._c.fm_abi_version.restype = c_int32
        if self._c.fm_abi_version() < self.abi:
            raise OSError(f"{path} has interface {self._c.fm_abi_version()}, {self.abi} is needed")

    @property
    def version(self):
        return self._c.fm_version().decode()

    def __getattr__(self, name):
        function = getattr(self._c, "fm_" + name)

        def call(*arguments):
            code = function(*(byref(a) if isinstance(a, Structure) and not isinstance(a, Sequence) else a for a in arguments))
            if code != 0:
                fault = Fault()
                self._c.fm_last_fault(byref(fault))
                raise FlashMemoryError(code, self._c.fm_status_name(code).decode(), fault.text.decode(errors="replace"))

        setattr(self, name, call)
        return call

    def make(self, kind, **values):
        """A struct with the library's defaults and what is given."""
        made = kind()
        if kind in _INIT:
            getattr(self, "init_" + _INIT[kind])(made, c_size_t(sizeof(kind)))
        elif kind._fields_[0][0] == "struct_size":
            made.struct_size = sizeof(kind)
        for name, value in values.items():
            if not hasattr(made, name):
                raise TypeError(f"{kind.__name__} has no field {name}")
            setattr(made, name, value)
        return made

    def open(self, name, *arguments):
        """What an ..._open or indexer_... call hands out."""
        handle = c_void_p()
        getattr(self, name)(*arguments, byref(handle))
        return handle


if sys.byteorder != "little":
    raise OSError("flashmemory needs a little-endian machine")
