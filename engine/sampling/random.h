// Counter-based random numbers: a pure function of (seed, counter), with no state to carry. The
// draw for generated token `index` is the same whether or not the sequence was preempted, resumed,
// or shared its batch.
//
// Philox4x32-10: J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC'11, section 4;
// known-answer vectors are in the tests.
#pragma once

#include <array>
#include <cstdint>

namespace sluice {

// The Philox4x32 bijection, ten rounds.
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// Uniform in [0, 1) with 53 random bits. `stream` separates independent uses of one index.
double UniformDraw(uint64_t seed, uint64_t index, uint32_t stream = 0);

}  // namespace sluice
