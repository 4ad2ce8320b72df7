// Involution that generates its kernels where it uses them: a tile of outputs of one group at a time, whose kernels fit the
// first-level cache. Included by kernels.h for each instruction set.

// N rows of the generator's weight times V vectors of outputs
template <typename A, int N, int V>
inline void generate_block(const A* weight, int64_t weight_pitch, const A* bias, const A* hidden, int64_t count,
                           int64_t pitch, A* kernels) {
  typedef typename Lanes<A, 16>::Vector Vector;
  Vector s[N][V];
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v) s[n][v] = Vector{} + (bias ? bias[n] : 0);
  for (int64_t r = 0; r < count; ++r) {
    Vector seen[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) seen[v] = load_lanes<A, 16>(hidden + r * pitch + 16 * v);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const A factor = weight[n * weight_pitch + r];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) s[n][v] += factor * seen[v];
    }
  }
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v) std::memcpy(kernels + n * pitch + 16 * v, &s[n][v], sizeof(Vector));
}

template <typename A, int N>
inline void generate_rows(const A* weight, int64_t weight_pitch, const A* bias, const A* hidden, int64_t count,
                          int64_t pitch, A* kernels) {
  int64_t x = 0;
  for (; x + 48 <= pitch; x += 48)
    generate_block<A, N, 3>(weight, weight_pitch, bias, hidden + x, count, pitch, kernels + x);
  for (; x < pitch; x += 16)
    generate_block<A, N, 1>(weight, weight_pitch, bias, hidden + x, count, pitch, kernels + x);
}

// kernels (rows x pitch) = weight (rows x count) * hidden (count x pitch) + bias, which may be null
template <typename A>
void generate(const A* weight, int64_t weight_pitch, const A* bias, const A* hidden, int64_t rows, int64_t count,
              int64_t pitch, A* kernels) {
  int64_t k = 0;
  for (; k + 7 <= rows; k += 7)
    generate_rows<A, 7>(weight + k * weight_pitch, weight_pitch, bias ? bias + k : bias, hidden, count, pitch, kernels + k * pitch);
  for (; k + 3 <= rows; k += 3)
    generate_rows<A, 3>(weight + k * weight_pitch, weight_pitch, bias ? bias + k : bias, hidden, count, pitch, kernels + k * pitch);
  for (; k < rows; ++k)
    generate_rows<A, 1>(weight + k * weight_pitch, weight_pitch, bias ? bias + k : bias, hidden, count, pitch, kernels + k * pitch);
}

// the hidden features of outputs [first, first + count), numbered row by row: one line for each feature, zeros behind them
template <typename T, typename A>
void pack_hidden(const Involution& q, const T* from, int64_t first, int64_t count, A* to) {
  const int64_t width = q.local.out_width;
  for (int64_t i = 0; i < count;) {
    const int64_t y = (first + i) / width, x = (first + i) % width;
    const int64_t length = count - i < width - x ? count - i : width - x;
    pack_lines(to + i, q.pitch, from + y * q.seen.h + x * q.seen.w, q.seen.c, q.seen.w, q.hidden, length);
    i += length;
  }
  clear_lines(to, q.pitch, q.hidden, count);
}

// numbers in the type in which sums are taken, copied to `to` where that is another one
template <typename T, typename A>
inline const A* widened(const T* from, int64_t count, A* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = load<A>(from[i]);
  return to;
}
template <typename A>
inline const A* widened(const A* from, int64_t, A*) {
  return from;
}

// scale and shift the results of some outputs of one row, while they are at hand
template <typename T, typename A>
void finish(const Problem& p, const InvolutionData& data, int64_t group, T* result, int64_t count) {
  if (data.scale == nullptr) return;
  const A* scale = static_cast<const A*>(data.scale) + group * p.channels;
  const A* shift = static_cast<const A*>(data.shift) + group * p.channels;
  const int64_t c = p.result.c, w = p.result.w;
  const auto finished = [&](T given, int64_t d) {
    const A number = load<A>(given) * scale[d] + shift[d];
    return store<T>(data.relu && number < 0 ? A{0} : number);
  };
  if (c == 1)
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < p.channels; ++d) result[i * w + d] = finished(result[i * w + d], d);
  else
    for (int64_t d = 0; d < p.channels; ++d)
      for (int64_t i = 0; i < count; ++i) result[d * c + i * w] = finished(result[d * c + i * w], d);
}

// tiles [begin, end) of the problem, a tile being some neighbouring outputs of one group of one image
template <typename T, typename A>
void run_involution(const Involution& q, const InvolutionData& data, void* memory, int64_t begin, int64_t end) {
  const Problem& p = q.local;
  const int64_t taps = p.geometry.kernel_h * p.geometry.kernel_w, pitch = q.pitch, outputs = p.out_height * p.out_width;
  char* free = static_cast<char*>(memory);
  if (!q.pixels) Rows<T, A>::forget(free, 1, 0);
  A* hidden = reinterpret_cast<A*>(free + (q.pixels ? 0 : mmrednet::rows_bytes(p, sizeof(A))));
  A* kernels = hidden + q.hidden * pitch;
  A* spare = kernels + taps * pitch;
  const A *weight = nullptr, *bias = nullptr;
  int64_t held_tile = -1, held_group = -1;
  for (int64_t item = begin; item < end; ++item) {
    // the groups of a tile share its hidden features, rows of a group those of the map
    const int64_t image = item / q.tiles / p.groups, rest = item % (q.tiles * p.groups);
    const int64_t tile = q.pixels ? rest / p.groups : rest % q.tiles, group = q.pixels ? rest % p.groups : rest / q.tiles;
    const int64_t first = tile * q.size, count = outputs - first < q.size ? outputs - first : q.size;
    if (held_tile != image * q.tiles + tile) {
      held_tile = image * q.tiles + tile;
      pack_hidden<T, A>(q, static_cast<const T*>(data.hidden) + image * q.seen.b, first, count, hidden);
    }
    if (held_group != group) {
      held_group = group;
      weight = widened(static_cast<const T*>(data.weight) + group * taps * q.hidden, taps * q.hidden, spare);
      bias = widened(static_cast<const T*>(data.bias) + group * taps, taps, spare + taps * q.hidden);
    }
    generate<A>(weight, q.hidden, bias, hidden, taps, q.hidden, pitch, kernels);
    const T* value = static_cast<const T*>(data.value) + image * p.first.b + group * p.first.g;
    T* result = static_cast<T*>(data.result) + image * p.result.b + group * p.result.g;
    if (!q.pixels) {
      Rows<T, A> rows(p, p.first, free, value);
      hold_seen(p, rows, tile);
      aggregate_row<T, A, false>(p, rows, kernels, pitch, result, tile);
      finish<T, A>(p, data, group, result + tile * p.result.h, count);
      continue;
    }
    for (int64_t i = 0; i < count;) {
      const int64_t y = (first + i) / p.out_width, x = (first + i) % p.out_width;
      const int64_t length = count - i < p.out_width - x ? count - i : p.out_width - x;
      const Taps<A> where = {kernels + i, p.geometry.kernel_w * pitch, pitch, 1};
      T* to = result + y * p.result.h + x * p.result.w;
      aggregate_span<T, A>(p, value, where, to, y, x, x + length);
      finish<T, A>(p, data, group, to, length);
      i += length;
    }
  }
}
