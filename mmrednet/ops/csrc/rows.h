// Maps that are packed row by row: vectors run along the width. Included by kernels.h for each instruction set.

// copy numbers of one row, with zeros around them
template <typename T, typename A>
inline void pack_line(A* to, int64_t length, int64_t left, const T* from, int64_t step, int64_t count) {
  if (count > length - left) count = length - left;
  for (int64_t i = 0; i < left; ++i) to[i] = 0;
  if (step == 1)
    for (int64_t i = 0; i < count; ++i) to[left + i] = load<A>(from[i]);
  else
    for (int64_t i = 0; i < count; ++i) to[left + i] = load<A>(from[i * step]);
  for (int64_t i = left + count; i < length; ++i) to[i] = 0;
}

// Rows of a map of one group, copied so that every tap of sixteen outputs is one load: zeros stand for what lies outside,
// and columns that outputs of one stride see through one tap lie together.
template <typename T, typename A>
struct Rows {
  const Problem& p;
  const View& view;
  const T* data;
  int64_t* held;
  A* packed;
  int64_t slots, phase, pitch;

  Rows(const Problem& problem, const View& v, char* memory)
      : p(problem), view(v), data(nullptr), held(reinterpret_cast<int64_t*>(memory)) {
    slots = mmrednet::slots(p);
    phase = mmrednet::phase_length(p);
    pitch = phase * p.geometry.stride_w;
    packed = reinterpret_cast<A*>(memory + slots * sizeof(int64_t));
    for (int64_t i = 0; i < slots; ++i) held[i] = -1;
  }

  // another group: nothing that is held belongs to it
  void look_at(const T* group) {
    if (group == data) return;
    data = group;
    for (int64_t i = 0; i < slots; ++i) held[i] = -1;
  }

  // the packed row of channel d; hold() has been called for it
  const A* line(int64_t row, int64_t d) const { return packed + (row % slots * p.channels + d) * pitch; }

  // where the outputs' columns of tap t begin in a line
  int64_t column(int64_t t) const {
    const int64_t j = t * p.geometry.dilation_w;
    return j % p.geometry.stride_w * phase + j / p.geometry.stride_w;
  }

  void hold(int64_t row) {
    const int64_t slot = row % slots, stride = p.geometry.stride_w, left = p.geometry.padding_w;
    if (held[slot] == row) return;
    held[slot] = row;
    for (int64_t d = 0; d < p.channels; ++d) {
      A* to = packed + (slot * p.channels + d) * pitch;
      const T* from = data + row * view.h + d * view.c;
      if (stride == 1) {
        pack_line(to, pitch, left, from, view.w, p.width);
        continue;
      }
      for (int64_t i = 0; i < pitch; ++i) to[i] = 0;
      const int64_t count = p.width < pitch - left ? p.width : pitch - left;
      for (int64_t c = 0; c < count; ++c)
        to[(c + left) % stride * phase + (c + left) / stride] = load<A>(from[c * view.w]);
    }
  }
};

// Sixteen outputs of a row and D channels at once. The weights of a tap lie as its outputs do, or, for scatter, as what
// the outputs see through it.
template <typename A, int D, bool kShifted, typename R>
inline void aggregate_tile(const Problem& p, const R& rows, const A* weights, int64_t pitch, int64_t y, int64_t x,
                           int64_t d, typename Lanes<A, 16>::Vector* sums) {
  typedef typename Lanes<A, 16>::Vector V;
  const Geometry& g = p.geometry;
  V s[D];
  for (int n = 0; n < D; ++n) s[n] = V{};
  for (int64_t u = 0; u < g.kernel_h; ++u) {
    const int64_t row = y * g.stride_h + u * g.dilation_h - g.padding_h;
    if (row < 0 || row >= p.height) continue;
    const A* line = rows.line(row, d) + x;
    for (int64_t t = 0; t < g.kernel_w; ++t) {
      const int64_t column = rows.column(t);
      const V factor = load_lanes<A, 16>(weights + (u * g.kernel_w + t) * pitch + x + (kShifted ? column : 0));
      const A* from = line + column;
#pragma GCC unroll 8
      for (int n = 0; n < D; ++n) s[n] += factor * load_lanes<A, 16>(from + n * rows.pitch);
    }
  }
  for (int n = 0; n < D; ++n) sums[n] = s[n];
}

// one row of the outputs of one group, from packed weights
template <typename T, typename A, bool kShifted>
void aggregate_row(const Problem& p, const Rows<T, A>& rows, const A* weights, int64_t pitch, T* result, int64_t y) {
  typedef typename Lanes<A, 16>::Vector V;
  const View& r = p.result;
  V sums[8];
  for (int64_t x = 0; x < p.out_width; x += 16) {
    const int64_t count = p.out_width - x < 16 ? p.out_width - x : 16;
    int64_t d = 0;
    while (d < p.channels) {
      const int64_t left = p.channels - d;
      const int step = left >= 8 ? 8 : left >= 4 ? 4 : 1;
      if (step == 8) aggregate_tile<A, 8, kShifted>(p, rows, weights, pitch, y, x, d, sums);
      else if (step == 4) aggregate_tile<A, 4, kShifted>(p, rows, weights, pitch, y, x, d, sums);
      else aggregate_tile<A, 1, kShifted>(p, rows, weights, pitch, y, x, d, sums);
      for (int n = 0; n < step; ++n) {
        A numbers[16];
        std::memcpy(numbers, &sums[n], sizeof(numbers));
        T* to = result + (d + n) * r.c + y * r.h + x * r.w;
        for (int64_t i = 0; i < count; ++i) to[i * r.w] = store<T>(numbers[i]);
      }
      d += step;
    }
  }
}

// hold all rows of the map that row y of the outputs sees
template <typename T, typename A>
void hold_seen(const Problem& p, Rows<T, A>& rows, int64_t y) {
  const Geometry& g = p.geometry;
  for (int64_t u = 0; u < g.kernel_h; ++u) {
    const int64_t row = y * g.stride_h + u * g.dilation_h - g.padding_h;
    if (row >= 0 && row < p.height) rows.hold(row);
  }
}

// aggregate: the weights of a row of outputs
template <typename T, typename A>
void aggregate_line(const Problem& p, Rows<T, A>& rows, const T* weight, T* result, A* weights, int64_t y) {
  const Geometry& g = p.geometry;
  const View& w = p.second;
  const int64_t pitch = mmrednet::padded(p.out_width);
  hold_seen(p, rows, y);
  for (int64_t u = 0; u < g.kernel_h; ++u) {
    const int64_t row = y * g.stride_h + u * g.dilation_h - g.padding_h;
    if (row < 0 || row >= p.height) continue;
    for (int64_t k = u * g.kernel_w; k < (u + 1) * g.kernel_w; ++k)
      pack_line(weights + k * pitch, pitch, 0, weight + k * w.c + y * w.h, w.w, p.out_width);
  }
  aggregate_row<T, A, false>(p, rows, weights, pitch, result, y);
}

// scatter with stride 1 is an aggregate with flipped taps (see mmrednet::flipped), whose weights move with the gradient
template <typename T, typename A>
void scatter_line(const Problem& f, Rows<T, A>& rows, const T* weight, T* result, A* weights, int64_t y) {
  const Geometry& g = f.geometry;
  const View& w = f.second;
  for (int64_t u = 0; u < g.kernel_h; ++u) {
    const int64_t row = y + u * g.dilation_h - g.padding_h;
    if (row < 0 || row >= f.height) continue;
    rows.hold(row);
    for (int64_t k = u * g.kernel_w; k < (u + 1) * g.kernel_w; ++k) {
      const T* from = weight + (g.kernel_h * g.kernel_w - 1 - k) * w.c + row * w.h;
      pack_line(weights + k * rows.pitch, rows.pitch, g.padding_w, from, w.w, f.width);
    }
  }
  aggregate_row<T, A, true>(f, rows, weights, rows.pitch, result, y);
}

// correlate, sixteen logits of a row and N neighbouring taps at once
template <typename A, int N, typename R>
inline void correlate_tile(const Problem& p, const R& keys, const A* query, int64_t pitch, int64_t row, int64_t x,
                           int64_t t, typename Lanes<A, 16>::Vector* sums) {
  typedef typename Lanes<A, 16>::Vector V;
  V s[N];
  int64_t columns[N];
  for (int n = 0; n < N; ++n) {
    s[n] = V{};
    columns[n] = keys.column(t + n) + x;
  }
  for (int64_t d = 0; d < p.channels; ++d) {
    const V factor = load_lanes<A, 16>(query + d * pitch + x);
    const A* line = keys.line(row, d);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) s[n] += factor * load_lanes<A, 16>(line + columns[n]);
  }
  for (int n = 0; n < N; ++n) sums[n] = s[n];
}

template <typename T, typename A>
void correlate_row(const Problem& p, Rows<T, A>& keys, const T* query, T* result, A* queries, int64_t y) {
  typedef typename Lanes<A, 16>::Vector V;
  const Geometry& g = p.geometry;
  const View &q = p.first, &r = p.result;
  const int64_t pitch = mmrednet::padded(p.out_width);
  for (int64_t d = 0; d < p.channels; ++d) {
    A* to = queries + d * pitch;
    const T* from = query + d * q.c + y * q.h;
    for (int64_t x = 0; x < p.out_width; ++x) to[x] = load<A>(from[x * q.w]);
    for (int64_t x = p.out_width; x < pitch; ++x) to[x] = 0;
  }
  V sums[7];
  for (int64_t u = 0; u < g.kernel_h; ++u) {
    const int64_t row = y * g.stride_h + u * g.dilation_h - g.padding_h;
    const bool inside = row >= 0 && row < p.height;
    if (inside) keys.hold(row);
    for (int64_t x = 0; x < p.out_width; x += 16) {
      const int64_t count = p.out_width - x < 16 ? p.out_width - x : 16;
      int64_t t = 0;
      while (t < g.kernel_w) {
        const int64_t left = g.kernel_w - t;
        const int step = left >= 7 ? 7 : left >= 3 ? 3 : 1;
        if (!inside) {
          for (int n = 0; n < step; ++n) sums[n] = V{};
        } else if (step == 7) {
          correlate_tile<A, 7>(p, keys, queries, pitch, row, x, t, sums);
        } else if (step == 3) {
          correlate_tile<A, 3>(p, keys, queries, pitch, row, x, t, sums);
        } else {
          correlate_tile<A, 1>(p, keys, queries, pitch, row, x, t, sums);
        }
        for (int n = 0; n < step; ++n) {
          A numbers[16];
          std::memcpy(numbers, &sums[n], sizeof(numbers));
          T* to = result + (u * g.kernel_w + t + n) * r.c + y * r.h + x * r.w;
          for (int64_t i = 0; i < count; ++i) to[i * r.w] = store<T>(numbers[i]);
        }
        t += step;
      }
    }
  }
}
