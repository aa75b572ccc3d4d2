// SPDX-License-Identifier: MIT
// A manifest with a shard, as bytes: either they are refused with a format_error, or the documents that come out fit
// the geometry. Input: u32 length of the manifest, manifest, shard. The manifest's own checksum is put right, so that
// what lies behind it is reached.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <flashmemory/error.hpp>
#include <flashmemory/io/safetensors.hpp>
#include <string>

#include "src/train/record/document_part.hpp"
#include "src/train/record/manifest.hpp"

namespace fm = flashmemory;
namespace train = flashmemory::train;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 4) return 0;
  std::uint32_t length;
  std::memcpy(&length, data, 4);
  if (length > size - 4) length = static_cast<std::uint32_t>(size - 4);
  const std::string text(reinterpret_cast<const char*>(data) + 4, length);
  try {
    train::detail::parse_manifest(text, "as it is");
  } catch (const fm::format_error&) {
  }
  try {
    const train::detail::manifest m =
        train::detail::parse_manifest(train::detail::with_right_checksum(text), "manifest");
    // What is read can be written and read again.
    if (to_text(train::detail::parse_manifest(to_text(m), "again")) != to_text(m)) std::abort();
    const fm::safetensors_file shard(reinterpret_cast<const std::byte*>(data) + 4 + length, size - 4 - length,
                                     "shard");
    std::int64_t width = 0;
    for (const auto& q : m.geometry.queries) width += q.width;
    for (const auto& k : m.geometry.keys) width += k.width;
    if (width > (1 << 20)) return 0;
    for (const auto& listed : m.documents) {
      try {
        train::document doc = empty_document(m.geometry, fm::dtype::bf16);
        doc.tokens = listed.info.tokens;
        for (std::size_t p = 0; p < listed.parts.size(); ++p)
          train::detail::append_part(shard, listed.number, static_cast<std::int64_t>(p), m.geometry, doc);
        check_document(doc, m.geometry, "document");
        for (const auto& q : doc.queries)
          if (q.rows() != static_cast<std::int64_t>(doc.positions.size())) std::abort();
      } catch (const fm::format_error&) {
      }
    }
  } catch (const fm::format_error&) {
  }
  return 0;
}
