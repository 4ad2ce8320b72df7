// GELU of a SIMD vector, x Phi(x), and its derivative. Phi is the normal distribution function.

#pragma once

#include <cstdint>

#include "integers.h"
#include "isa.h"
#include "simd.h"
#include "simd_exp.h"

namespace mmrednet::MMREDNET_ISA {

// Phi(x), and e^(-x^2 / 2), which its derivative needs too.
template <typename A>
struct NormalDistribution {
  Simd<A> phi, bell;
};

// Phi(-|x|) = e^(-x^2 / 2) p(t) with t = 1 / (1 + 0.23 |x|). The polynomial p was fitted to the
// least relative error for |x| <= 14, which is 5e-8. So small results are as accurate as large
// ones.
inline NormalDistribution<float> normal_distribution(Simd<float> x) {
  const Simd<float> size = x < 0 ? -x : x;
  const Simd<float> bell = exp_nonpositive(-0.5f * x * x);
  const Simd<float> t = 1.f / (1.f + 0.23f * size);
  Simd<float> p = -7.8467479e-2f * t + 2.90414221e-1f;
  p = p * t - 2.78127107e-1f;
  p = p * t + 3.01472905e-1f;
  p = p * t - 3.29202380e-2f;
  p = p * t + 1.19514062e-1f;
  p = p * t + 8.57629187e-2f;
  p = p * t + 9.23784564e-2f;
  p = p * t - 2.77624266e-5f;
  const Simd<float> tail = p * bell;
  return {x < 0 ? tail : 1.f - tail, bell};
}

// float64 is for checking gradients, where accuracy counts and time does not.
inline NormalDistribution<double> normal_distribution(Simd<double> x) {
  NormalDistribution<double> result;
  for (int n = 0; n < kSimdWidth; ++n) {
    result.phi[n] = 0.5 * __builtin_erfc(-0.70710678118654752440 * x[n]);
    result.bell[n] = __builtin_exp(-0.5 * x[n] * x[n]);
  }
  return result;
}

template <typename A>
inline Simd<A> gelu(Simd<A> x) {
  return x * normal_distribution(x).phi;
}

template <typename A>
inline Simd<A> gelu_derivative(Simd<A> x) {
  constexpr A kInverseRoot = 0.39894228040143267794;
  const NormalDistribution<A> normal = normal_distribution(x);
  return normal.phi + x * normal.bell * kInverseRoot;
}

}  // namespace mmrednet::MMREDNET_ISA
