// Compares exp_nonpositive() and exp2_nonpositive() with std::exp and std::exp2 in double
// precision, over every step-th float from zero to minus infinity. Prints the largest error in
// units in the last place.
//
// usage: exp_accuracy STEP

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "integers.h"
#include "simd.h"
#include "simd_exp.h"
#include "simd_exp2.h"

namespace {

constexpr int64_t kZeroBits = 0x80000000, kInfinityBits = 0xff800000;
// exit status that stands for a processor without the instruction set
constexpr int kSkipped = 77;

float to_float(int64_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits);
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

// The error of a result, in units in the last place of a float.
double error_of(float result, double exact) {
  // of a number that is not a normal float, zero is as good as the number
  if (exact < FLT_MIN && result == 0) return 0;
  int exponent;
  std::frexp(exact < FLT_MIN ? FLT_MIN : exact, &exponent);
  return std::fabs(result - exact) / std::ldexp(1.0, exponent - FLT_MANT_DIG);
}

// The largest error of a function of vectors over every step-th float.
template <typename Function, typename Exact>
double largest_error(int64_t step, const Function& function, const Exact& exact) {
  using namespace mmrednet;
  double worst = 0;
  for (int64_t first = kZeroBits; first <= kInfinityBits; first += kSimdWidth * step) {
    float inputs[kSimdWidth], results[kSimdWidth];
    for (int n = 0; n < kSimdWidth; ++n)
      inputs[n] = to_float(int_min(first + n * step, kInfinityBits));
    const auto vector = MMREDNET_ISA::load_simd<float>(inputs);
    MMREDNET_ISA::store_simd<float>(results, function(vector));
    for (int n = 0; n < kSimdWidth; ++n) {
      const double error = error_of(results[n], exact(static_cast<double>(inputs[n])));
      // the negation is true for NaN too
      if (!(error <= worst)) worst = error;
    }
  }
  return worst;
}

}  // namespace

int main(int, char** arguments) {
#if defined(__AVX512BF16__)
  if (!__builtin_cpu_supports("avx512bf16")) return kSkipped;
#elif defined(__AVX512F__)
  if (!__builtin_cpu_supports("avx512f")) return kSkipped;
#elif defined(__AVX2__)
  if (!__builtin_cpu_supports("avx2")) return kSkipped;
#endif
  using namespace mmrednet::MMREDNET_ISA;
  const int64_t step = std::atoll(arguments[1]);
  const double exp_error = largest_error(
      step, [](Simd<float> x) { return exp_nonpositive(x); }, [](double x) { return std::exp(x); });
  const double exp2_error = largest_error(
      step, [](Simd<float> x) { return exp2_nonpositive(x); },
      [](double x) { return std::exp2(x); });
  std::printf("%.4f\n%.4f\n", exp_error, exp2_error);
}
