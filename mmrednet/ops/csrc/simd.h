// Vectors of neighbouring numbers. Included by kernels.h for each instruction set.

// N neighbouring numbers, which the compiler keeps in registers
template <typename A, int N>
struct Lanes {
  typedef A Vector __attribute__((vector_size(N * sizeof(A))));
};

template <typename A, int N>
inline typename Lanes<A, N>::Vector load_lanes(const A* from) {
  typename Lanes<A, N>::Vector result;
  std::memcpy(&result, from, sizeof(result));
  return result;
}

template <typename A, int N>
inline typename Lanes<A, N>::Vector load_lanes(const mmrednet::BFloat16* from) {
  typename Lanes<uint16_t, N>::Vector half;
  std::memcpy(&half, from, sizeof(half));
  const auto bits = __builtin_convertvector(half, typename Lanes<uint32_t, N>::Vector) << 16;
  typename Lanes<A, N>::Vector result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

template <typename T, typename A, int N>
inline void store_lanes(T* to, typename Lanes<A, N>::Vector value) {
  for (int n = 0; n < N; ++n) to[n] = store<T>(static_cast<A>(value[n]));
}
