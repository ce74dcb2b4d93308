// Macros for the files that are compiled once per instruction set (macros only: nothing here may
// become a symbol).
//
// Before including any `*-inl.h`, an ISA file defines SLUICE_ISA as the name of its namespace. All
// that it compiles lives in sluice::cpu::SLUICE_ISA inside an unnamed namespace, and calls no
// inline function or template from elsewhere, the standard library's included. Otherwise the
// linker, which keeps one body of each inline function, might keep the one with AVX-512 for every
// caller. tests/unit/kernels checks this on the object files.
#pragma once

#define SLUICE_INLINE inline __attribute__((always_inline))

#define SLUICE_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define SLUICE_UNROLL(n) SLUICE_PRAGMA(unroll n)
#else
#define SLUICE_UNROLL(n) SLUICE_PRAGMA(GCC unroll n)
#endif

#define SLUICE_BEGIN_ISA  \
  namespace sluice::cpu { \
  namespace SLUICE_ISA {  \
  namespace {
#define SLUICE_END_ISA \
  }                    \
  }                    \
  }
