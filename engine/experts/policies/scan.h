// Finding the victim: the smallest key among evictable places, in one vectorised pass.
#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "engine/base/check.h"

namespace sluice {

// The smallest keys[i] with evictable[i] != 0 for i in [begin, end), or T's largest value when
// there is none. Keys are no NaNs.
template <class T>
T MinEvictableKey(std::span<const T> keys, std::span<const uint8_t> evictable, int begin, int end) {
  constexpr int kLanes = 16;  // independent minima, which compilers keep in vector registers
  constexpr T kNone = std::numeric_limits<T>::max();
  T least[kLanes];
  for (T& lane : least) lane = kNone;
  const T* key = keys.data();
  const uint8_t* flag = evictable.data();
  int i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    // Flags are widened on their own, so that the choice below is a blend and no branch (GCC 12).
    T barred[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) barred[lane] = flag[i + lane] != 0 ? T{0} : T{1};
    for (int lane = 0; lane < kLanes; ++lane) {
      const T known = key[i + lane];
      const T offered = barred[lane] == T{0} ? known : kNone;
      least[lane] = offered < least[lane] ? offered : least[lane];
    }
  }
  T result = kNone;
  for (; i < end; ++i) {
    if (flag[i] != 0 && key[i] < result) result = key[i];
  }
  for (const T lane : least) result = lane < result ? lane : result;
  return result;
}

// The first place in [begin, end) that is evictable and has this key; -1: none.
template <class T>
int FindEvictableKey(std::span<const T> keys, std::span<const uint8_t> evictable, int begin,
                     int end, T key) {
  for (int i = begin; i < end; ++i) {
    if (evictable[i] != 0 && keys[i] == key) return i;
  }
  return -1;
}

// The evictable place with the smallest key; the lowest of equal ones; -1: none is evictable.
template <class T>
int LeastEvictable(std::span<const T> keys, std::span<const uint8_t> evictable) {
  SLUICE_CHECK(keys.size() == evictable.size());
  const int size = static_cast<int>(keys.size());
  return FindEvictableKey(keys, evictable, 0, size, MinEvictableKey(keys, evictable, 0, size));
}

}  // namespace sluice
