// The logarithm of a SIMD vector.

#pragma once

#include <cstdint>
#include <cstring>

#include "integers.h"
#include "isa.h"
#include "simd.h"

namespace mmrednet::MMREDNET_ISA {

// log(x) of zero and of positive normal numbers that are not infinite. From one on, the largest
// error is below two units in the last place (see tests/csrc/exp_accuracy.cpp).
//
// x = 2^n (1 + r) with an integer n and 1 + r between the roots of 1/2 and of 2. A polynomial
// stands for log(1 + r). (Coefficients are those of Cephes' logf.)
inline Simd<float> log_nonnegative(Simd<float> x) {
  using Bits = Vector<int32_t, kSimdWidth>;
  // the bits of the root of 1/2
  constexpr int32_t kRootBits = 0x3f3504f3, kMantissaBits = 23;
  Bits bits;
  std::memcpy(&bits, &x, sizeof(x));
  const Bits n_bits = (bits - kRootBits) >> kMantissaBits;
  const Bits factor_bits = bits - (n_bits << kMantissaBits);
  Simd<float> factor;
  std::memcpy(&factor, &factor_bits, sizeof(factor));
  const Simd<float> n = __builtin_convertvector(n_bits, Simd<float>);
  const Simd<float> r = factor - 1.f, square = r * r;
  Simd<float> y = 7.0376836292e-2f * r - 1.1514610310e-1f;
  y = y * r + 1.1676998740e-1f;
  y = y * r - 1.2420140846e-1f;
  y = y * r + 1.4249322787e-1f;
  y = y * r - 1.6668057665e-1f;
  y = y * r + 2.0000714765e-1f;
  y = y * r - 2.4999993993e-1f;
  y = y * r + 3.3333331174e-1f;
  // log(2) in two parts: n times the second, which has few bits, is exact
  y = y * r * square - n * 2.12194440e-4f - 0.5f * square;
  y = (r + y) + n * 0.693359375f;
  const Simd<float> special = x == 0 ? Simd<float>{} - __builtin_inff() : x;
  return x > 0 ? y : special;
}

// float64 is for checking gradients, where accuracy counts and time does not.
inline Simd<double> log_nonnegative(Simd<double> x) {
  for (int n = 0; n < kSimdWidth; ++n) x[n] = __builtin_log(x[n]);
  return x;
}

}  // namespace mmrednet::MMREDNET_ISA
