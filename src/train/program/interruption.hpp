// SPDX-License-Identifier: MIT
#pragma once

namespace indexer_program {

/// Ctrl-C, and the SIGTERM of a batch system or container, ask a run to stop where it can go on later. While one of these
/// lives the first signal asks and the next one ends the process.
class interruption {
 public:
  interruption();
  ~interruption();
  interruption(const interruption&) = delete;
  interruption& operator=(const interruption&) = delete;

  bool asked() const noexcept;
  /// What a shell says of a process that the signal ended.
  int exit_code() const noexcept;
};

}  // namespace indexer_program
