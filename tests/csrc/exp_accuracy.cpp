// Compares exp_nonpositive(), exp2_nonpositive() and softmax_weight() with std::exp and std::exp2
// in double precision, over every step-th float from zero to minus infinity. Prints the largest
// error of the first two in units in the last place, that of the rough power as a share of the
// result, and that of the last as a share of the largest weight. Then the largest error of
// log_nonnegative(), from one to the largest float, in units in the last place.
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
#include "simd_log.h"

namespace {

constexpr int64_t kZeroBits = 0x80000000, kInfinityBits = 0xff800000;
constexpr int64_t kOneBits = 0x3f800000, kLargestBits = 0x7f7fffff;
// exit status that stands for a processor without the instruction set
constexpr int kSkipped = 77;

float to_float(int64_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits);
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

// The error of a result, in units in the last place of a float.
double units_of(float result, double exact) {
  // of a number that is not a normal float, zero is as good as the number
  if (exact < FLT_MIN && result == 0) return 0;
  int exponent;
  std::frexp(exact < FLT_MIN ? FLT_MIN : exact, &exponent);
  return std::fabs(result - exact) / std::ldexp(1.0, exponent - FLT_MANT_DIG);
}

// The error of a result that is no smaller than a normal float, as a share of it.
double relative_error_of(float result, double exact) {
  return exact < FLT_MIN ? 0 : std::fabs(result - exact) / exact;
}

// The error of a weight of a softmax, whose largest one is 1.
double absolute_error_of(float result, double exact) { return std::fabs(result - exact); }

// The largest error of a function of vectors over every step-th float of a range of bits.
template <typename Function, typename Exact, typename Error>
double largest_error(int64_t step, const Function& function, const Exact& exact,
                     const Error& error_of, int64_t begin = kZeroBits,
                     int64_t end = kInfinityBits) {
  using namespace mmrednet;
  double worst = 0;
  for (int64_t first = begin; first <= end; first += kSimdWidth * step) {
    float inputs[kSimdWidth], results[kSimdWidth];
    for (int n = 0; n < kSimdWidth; ++n) inputs[n] = to_float(int_min(first + n * step, end));
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
      step, [](Simd<float> x) { return exp_nonpositive(x); }, [](double x) { return std::exp(x); },
      units_of);
  const double exp2_error = largest_error(
      step, [](Simd<float> x) { return exp2_nonpositive(x); },
      [](double x) { return std::exp2(x); }, units_of);
  const double rough_error = largest_error(
      step, [](Simd<float> x) { return exp2_nonpositive<true>(x); },
      [](double x) { return std::exp2(x); }, relative_error_of);
  const double weight_error = largest_error(
      step, [](Simd<float> x) { return softmax_weight<float>(x); },
      [](double x) { return std::exp(x); }, absolute_error_of);
  const double log_error = largest_error(
      step, [](Simd<float> x) { return log_nonnegative(x); }, [](double x) { return std::log(x); },
      units_of, kOneBits, kLargestBits);
  std::printf("%.4f\n%.4f\n%.4e\n%.4e\n%.4f\n", exp_error, exp2_error, rough_error, weight_error,
              log_error);
}
