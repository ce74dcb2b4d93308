// What makes a restarted box warm: a file with the KvBlocks that the prefix index knows, their
// tokens and their bytes, and the heat of the routed experts.
//
// Written whole beside the old one, synced and renamed, so that a crash leaves the old file or the
// new one. A file of another identity (pack, precision, KV format, instruction set, version) or
// with a wrong checksum anywhere is as good as none: nothing of it is used.
//
// Layout, little endian: "SLUICEKV", u32 version, u32 block tokens, u64 block bytes, u64 records,
// u32 identity bytes, the identity, u64 checksum of these; u64 experts, an f32 of heat for each (by
// place), u64 checksum of these; then for each record, most recently used first: u64 key, i64
// record of the block before it or -1 (always an earlier record), i32 tokens, block bytes, u64
// checksum of the record's bytes before it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "engine/base/result.h"
#include "engine/model/model.h"
#include "engine/scheduler/scheduler.h"

namespace sluice {

struct SavedStateOptions {
  std::filesystem::path file;               // empty: no state is kept
  std::string identity;                     // of all that decides what KvBlocks hold, beside tokens
  uint64_t most_bytes = uint64_t{1} << 30;  // of blocks; the least recently used are left out
  // Called after every block that was read or written: a card takes a minute for a gigabyte, and
  // whoever watches the thread must see that it lives. May be empty.
  std::function<void()> progress = {};
};

// Whether WriteSavedState could write the file, as far as can be known before: so that a wrong
// directory is refused at the start and not found out at the stop. Leaves nothing behind, and
// touches neither the file nor what another process is writing. Errors: kInvalidArgument naming
// what stands in the way.
Result<> CheckSavedStateFile(const std::filesystem::path& file);

// Writes blocks of exact sequences (prefix key 0) and the heat. Blocks written. Errors: kIo,
// kNotFound, kResourceExhausted naming the file; the old file is as it was. REQUIRES: outside a
// step.
Result<int> WriteSavedState(const SavedStateOptions& options, const Scheduler& scheduler,
                            const Model& model);

// Blocks restored, as many as there is room for. Errors: kNotFound (no file), kCorrupt, kIo,
// kUnsupported (another identity): then nothing is restored. REQUIRES: a scheduler that never ran.
Result<int> ReadSavedState(const SavedStateOptions& options, Scheduler* scheduler, Model* model);

}  // namespace sluice
