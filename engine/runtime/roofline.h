// What this machine's memory and arithmetic can do with the threads that a model will use:
// bandwidth by streaming reads, arithmetic by the matmul kernel's own multiply-accumulate
// instruction from registers. Best of several passes: what the machine can do, not what it did
// while disturbed. A second or less.
#pragma once

#include <cstdint>

#include "engine/model/model.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/thread_pool.h"

namespace sluice {

struct Roofline {
  double read_bytes_per_second = 0;
  // The median of the passes: what the machine does rather than what it can.
  double typical_read_bytes_per_second = 0;
  double macs_per_second = 0;  // of the weights' type; 8-bit integers for bit-nested ones
  double f32_macs_per_second = 0;
  // Attention computes in F32, and with a Q8 cache in 8-bit integers.
  double attention_macs_per_second = 0;
  double fork_seconds = 0;  // the pool's threads begin and end a piece of work together
};

// Sets what it measures of memory, and fork_seconds. Reads over a buffer of `memory_bytes`, freed
// again: 0 means 256 MiB per thread, far more than caches hold and the most; the least is 8 MiB per
// thread.
Roofline MeasureMemory(const cpu::Ops& ops, cpu::ThreadPool& pool, uint64_t memory_bytes);

// Sets the rest, for a model's types.
void MeasureArithmetic(const cpu::Ops& ops, cpu::ThreadPool& pool, const Model& model,
                       Roofline* roofline);

}  // namespace sluice
