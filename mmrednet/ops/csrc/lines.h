// Between a tensor and lines, one for each channel, in which neighbouring outputs lie together. Included by kernels.h for
// each instruction set.

// Whether blocks of sixteen outputs are turned in registers: where a shuffle of sixteen lanes is one instruction.
template <typename A>
constexpr bool kTurned = false;

template <typename A>
inline void turn(typename Lanes<A, 16>::Vector*) {}

#if defined(__AVX512F__) && !defined(__clang__)
template <>
constexpr bool kTurned<float> = true;

// swaps the numbers whose lane and vector differ in a bit, bit by bit
template <>
inline void turn<float>(Lanes<float, 16>::Vector* s) {
  typedef Lanes<int32_t, 16>::Vector I;
  const I lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#pragma GCC unroll 4
  for (int bit = 1; bit < 16; bit *= 2) {
    // lanes 16 to 31 are those of the second vector
    const I first = (lane & bit) ? lane + (16 - bit) : lane, second = (lane & bit) ? lane + 16 : lane + bit;
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      if (i & bit) continue;
      const auto a = s[i], b = s[i + bit];
      s[i] = __builtin_shuffle(a, b, first);
      s[i + bit] = __builtin_shuffle(a, b, second);
    }
  }
}
#endif

// sixteen outputs of N channels
template <typename T, typename A, int N>
inline void pack_block(A* to, int64_t pitch, const T* from, int64_t step) {
  typename Lanes<A, 16>::Vector s[16];
#pragma GCC unroll 16
  for (int x = 0; x < 16; ++x) {
    const auto seen = load_lanes<A, N>(from + x * step);
    s[x] = typename Lanes<A, 16>::Vector{};
    std::memcpy(&s[x], &seen, sizeof(seen));
  }
  turn<A>(s);
#pragma GCC unroll 16
  for (int d = 0; d < N; ++d) std::memcpy(to + d * pitch, &s[d], sizeof(s[d]));
}

template <typename T, typename A, int N>
inline void unpack_block(T* to, int64_t step, const A* from, int64_t pitch) {
  typename Lanes<A, 16>::Vector s[16];
#pragma GCC unroll 16
  for (int d = 0; d < 16; ++d)
    s[d] = d < N ? load_lanes<A, 16>(from + d * pitch) : typename Lanes<A, 16>::Vector{};
  turn<A>(s);
#pragma GCC unroll 16
  for (int x = 0; x < 16; ++x) {
    typename Lanes<A, N>::Vector seen;
    std::memcpy(&seen, &s[x], sizeof(seen));
    store_lanes<T, A, N>(to + x * step, seen);
  }
}

// what a tensor keeps at d * line + x * step, in lines: one for each d
template <typename T, typename A>
void pack_lines(A* to, int64_t pitch, const T* from, int64_t line, int64_t step, int64_t lines, int64_t count) {
  if (line != 1) {
    for (int64_t d = 0; d < lines; ++d)
      for (int64_t x = 0; x < count; ++x) to[d * pitch + x] = load<A>(from[d * line + x * step]);
    return;
  }
  int64_t x = 0;
  if constexpr (kTurned<A>)
    for (; x + 16 <= count; x += 16) {
      int64_t d = 0;
      for (; d + 16 <= lines; d += 16) pack_block<T, A, 16>(to + d * pitch + x, pitch, from + x * step + d, step);
      for (; d + 8 <= lines; d += 8) pack_block<T, A, 8>(to + d * pitch + x, pitch, from + x * step + d, step);
      for (; d < lines; ++d)
        for (int64_t i = x; i < x + 16; ++i) to[d * pitch + i] = load<A>(from[i * step + d]);
    }
  for (; x < count; ++x)
    for (int64_t d = 0; d < lines; ++d) to[d * pitch + x] = load<A>(from[x * step + d]);
}

// lines back to where a tensor keeps them
template <typename T, typename A>
void unpack_lines(T* to, int64_t line, int64_t step, const A* from, int64_t pitch, int64_t lines, int64_t count) {
  if (step == 1) {
    for (int64_t d = 0; d < lines; ++d)
      for (int64_t x = 0; x < count; ++x) to[d * line + x] = store<T>(from[d * pitch + x]);
    return;
  }
  int64_t x = 0;
  if constexpr (kTurned<A>)
    for (; line == 1 && x + 16 <= count; x += 16) {
      int64_t d = 0;
      for (; d + 16 <= lines; d += 16) unpack_block<T, A, 16>(to + x * step + d, step, from + d * pitch + x, pitch);
      for (; d + 8 <= lines; d += 8) unpack_block<T, A, 8>(to + x * step + d, step, from + d * pitch + x, pitch);
      for (; d < lines; ++d)
        for (int64_t i = x; i < x + 16; ++i) to[i * step + d] = store<T>(from[d * pitch + i]);
    }
  for (; x < count; ++x)
    for (int64_t d = 0; d < lines; ++d) to[d * line + x * step] = store<T>(from[d * pitch + x]);
}

// zeros in the lines from `first` on
template <typename A>
void clear_lines(A* to, int64_t pitch, int64_t lines, int64_t first) {
  for (int64_t d = 0; d < lines; ++d)
    for (int64_t x = first; x < pitch; ++x) to[d * pitch + x] = 0;
}
