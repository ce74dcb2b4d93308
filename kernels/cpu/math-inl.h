// Vector functions shared by the ops of one ISA file.
#pragma once

#include "kernels/cpu/isa_macros.h"

SLUICE_BEGIN_ISA

// e^x to about 1e-7 relative. x is clamped to [-87, 88], except that below -87 the result is 0; a
// NaN stays a NaN. Range reduction after Cody and Waite: x = n ln 2 + r with |r| <= ln 2 / 2, ln 2
// in two parts so that n times the first is exact; then 1 + r + r^2 q(r), q of degree 4 fitted to
// least maximum relative error (3.6e-9).
SLUICE_INLINE Vec Exp(Vec x) {
  const Vec clamped = Min(Set(88.0f), Max(Set(-87.5f), x));
  const Vec n = RoundToInt(Mul(clamped, Set(1.44269504f)));
  Vec r = Fma(n, Set(-0.693145752f), clamped);
  r = Fma(n, Set(-1.42860677e-6f), r);
  Vec q = Set(0.00138145394f);
  q = Fma(q, r, Set(0.00836874545f));
  q = Fma(q, r, Set(0.041668389f));
  q = Fma(q, r, Set(0.166665211f));
  q = Fma(q, r, Set(0.49999994f));
  const Vec e = Add(Set(1.0f), Fma(Mul(q, r), r, r));
  return ScaleByPow2(e, n);
}

// Exp for softmax: exactly 0 where x <= -87, masked lanes at minus infinity included.
SLUICE_INLINE Vec ExpOrZero(Vec x) { return ZeroAtOrBelow(Exp(x), x, -87.0f); }

// 2^x to about 2e-7 relative for x <= 0; below -126 the result is 2^-126, a NaN stays a NaN. 2^x =
// 2^n (1 + r q(r)) with n the integer nearest to x: r = x - n is exact, and q of degree 4 is fitted
// to least maximum relative error (9.1e-8).
SLUICE_INLINE Vec Exp2OfNegative(Vec x) {
  const Vec clamped = Max(Set(-126.0f), x);
  const Vec n = RoundToInt(clamped);
  const Vec r = Sub(clamped, n);
  Vec q = Set(0.00132647273f);
  q = Fma(q, r, Set(0.00967151299f));
  q = Fma(q, r, Set(0.0555073358f));
  q = Fma(q, r, Set(0.240222424f));
  q = Fma(q, r, Set(0.693147004f));
  return ScaleByPow2(Fma(q, r, Set(1.0f)), n);
}

SLUICE_INLINE Vec Tanh(Vec x) {
  const Vec e = Exp(Add(x, x));
  return Sub(Set(1.0f), Div(Set(2.0f), Add(e, Set(1.0f))));
}

SLUICE_END_ISA
