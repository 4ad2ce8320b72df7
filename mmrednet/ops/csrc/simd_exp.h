// The exponential of a SIMD vector.

#pragma once

#include <cstdint>
#include <cstring>

#include "integers.h"
#include "isa.h"
#include "simd.h"

namespace mmrednet::MMREDNET_ISA {

// e^x for x <= 0. The largest error over all floats is 1.02 units in the last place (see
// tests/csrc/exp_accuracy.cpp). Results below the smallest normal float are zero.
//
// x = n log(2) + r with an integer n and |r| <= log(2) / 2. Then e^x = 2^n e^r, a polynomial stands
// for e^r, and 2^n is built from its exponent bits. (Coefficients are those of Cephes' expf.)
inline Simd<float> exp_nonpositive(Simd<float> x) {
  using Bits = Vector<int32_t, kSimdWidth>;
  // Adding 1.5 * 2^23 rounds to an integer, which the sum then has in its lower bits.
  constexpr float kRound = 12582912.f;
  // the logarithm of the smallest normal float, 2^-126
  constexpr float kLogSmallest = -87.336544f;
  constexpr int32_t kRoundBits = 0x4b400000, kExponentBias = 127, kMantissaBits = 23;
  const Simd<float> rounded = x * 1.44269504f + kRound;
  Bits n_bits;
  std::memcpy(&n_bits, &rounded, sizeof(rounded));
  const Simd<float> n = rounded - kRound;
  // log(2) in two parts: n times the first, which has few bits, is exact
  const Simd<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Simd<float> y = 1.9875691500e-4f * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.f;
  const Bits power_bits = (n_bits + (kExponentBias - kRoundBits)) << kMantissaBits;
  Simd<float> power;
  std::memcpy(&power, &power_bits, sizeof(power));
  // further below, the exponent bits of 2^n would be wrong
  return x < kLogSmallest ? Simd<float>{} : y * power;
}

// float64 is for checking gradients, where accuracy counts and time does not.
inline Simd<double> exp_nonpositive(Simd<double> x) {
  for (int n = 0; n < kSimdWidth; ++n) x[n] = __builtin_exp(x[n]);
  return x;
}

}  // namespace mmrednet::MMREDNET_ISA
