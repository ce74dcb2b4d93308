// The memory that the kernel counts against this process.
#pragma once

#include <cstdint>

namespace sluice {

// Resident bytes now, code included; 0 when the kernel does not say.
uint64_t ResidentBytes();

// The most that was resident since the start, or since ResetPeakResidentBytes.
uint64_t PeakResidentBytes();
// False where the kernel does not allow it: the peak is then that of the whole life.
bool ResetPeakResidentBytes();

// Gives what the allocator keeps for later back to the system.
void ReturnFreeMemory();

}  // namespace sluice
