// Device memory, streams' ends and errors, without a CUDA header. What the kernels' tests need; the
// backend will hold streams, events and pinned memory of its own.
//
// Threads: any. A program with this works on machines without a driver: DeviceCount is 0 there and
// the others fail.
#pragma once

#include <cstddef>

#include "kernels/cuda/ops.h"

namespace sluice::cuda {

int DeviceCount();
// A sentence for a status that is not kOk.
const char* StatusText(Status status);

// Memory of the current device, 256-byte aligned. REQUIRES: bytes > 0.
Status Allocate(size_t bytes, void** memory);
void Free(void* memory);
// Host to device or back, after all that the default stream holds; returns when it is done.
Status Copy(void* to, const void* from, size_t bytes);
// Waits for the stream, and reports what its kernels did wrong.
Status Synchronize(Stream stream);

}  // namespace sluice::cuda
