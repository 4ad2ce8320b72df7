// The power of two of a SIMD vector: two thirds of the operations of an exponential. A softmax of
// logits times log2(e) is the same.

#pragma once

#include <cstdint>
#include <cstring>

#include "integers.h"
#include "isa.h"
#include "simd.h"
#include "simd_exp.h"
#include "simd_pairs.h"

namespace mmrednet::MMREDNET_ISA {

constexpr double kLog2E = 1.4426950408889634;

// 2^x for x <= 0. The largest error over all floats is 0.94 units in the last place, or 1e-4 of the
// result if kRough (see tests/csrc/exp_accuracy.cpp). Results below the smallest normal float are
// zero.
//
// x = n + r with an integer n and |r| <= 1/2. A polynomial of least relative error stands for 2^r,
// and 2^n is built from its exponent bits.
template <bool kRough = false>
inline Simd<float> exp2_nonpositive(Simd<float> x) {
  using Bits = Vector<int32_t, kSimdWidth>;
  // Adding 1.5 * 2^23 rounds to an integer, which the sum then has in its lower bits.
  constexpr float kRound = 12582912.f;
  // the smallest normal float is 2^-126
  constexpr float kSmallest = -126.f;
  constexpr int32_t kRoundBits = 0x4b400000, kExponentBias = 127, kMantissaBits = 23;
  const Simd<float> rounded = x + kRound;
  Bits n_bits;
  std::memcpy(&n_bits, &rounded, sizeof(rounded));
  const Simd<float> r = x - (rounded - kRound);
  Simd<float> y;
  if constexpr (kRough) {
    y = 5.5008689983e-02f * r + 2.4221063137e-01f;
    y = y * r + 6.9328291703e-01f;
  } else {
    y = 1.5353361960e-04f * r + 1.3398873853e-03f;
    y = y * r + 9.6184369177e-03f;
    y = y * r + 5.5503323674e-02f;
    y = y * r + 2.4022647738e-01f;
    y = y * r + 6.9314718246e-01f;
  }
  y = y * r + 1.f;
  const Bits power_bits = (n_bits + (kExponentBias - kRoundBits)) << kMantissaBits;
  Simd<float> power;
  std::memcpy(&power, &power_bits, sizeof(power));
  // further below, the exponent bits of 2^n would be wrong
  return x < kSmallest ? Simd<float>{} : y * power;
}

// float64 is for checking gradients, where accuracy counts and time does not.
template <bool kRough = false>
inline Simd<double> exp2_nonpositive(Simd<double> x) {
  for (int n = 0; n < kSimdWidth; ++n) x[n] = __builtin_exp2(x[n]);
  return x;
}

// e^x for x <= 0, as a weight of a softmax. x log2(e) is rounded, so that the error of the result
// is up to 2^-24 |x| of it. Of the largest weight, e^0, that is less than 2^-24.
//
// Where weights are rounded to bfloat16 a rough power does: half a unit in their last place is
// 2e-3.
template <typename T>
inline Simd<float> softmax_weight(Simd<float> x) {
  return exp2_nonpositive<kDotsPairs<T>>(x * static_cast<float>(kLog2E));
}

template <typename T>
inline Simd<double> softmax_weight(Simd<double> x) {
  return exp_nonpositive(x);
}

}  // namespace mmrednet::MMREDNET_ISA
