// The three primitives for one instruction set: this file is compiled once for each, inside a namespace of its own.
// Everything here works on raw pointers and strides; what the tensors mean is documented in mmrednet/ops/local.py.
//
// Each output is computed by one thread in one order, so results do not depend on the number of threads. Channels-last maps
// are read where they are, position by position, with vectors along the channels of a group. Of other maps, and of the keys
// of correlate, a few rows at a time are packed so that vectors run along the width. A scatter with a stride, or with more
// padding than its kernel reaches, adds row by row instead.

#ifndef MMREDNET_NAMESPACE
#error "MMREDNET_NAMESPACE names the instruction set"
#endif

namespace MMREDNET_NAMESPACE {

using mmrednet::Geometry;
using mmrednet::Problem;
using mmrednet::View;
using mmrednet::load;
using mmrednet::store;

// outputs [first, last) along one axis whose tap falls on the map
inline void valid(int64_t tap, int64_t stride, int64_t dilation, int64_t padding, int64_t size, int64_t outputs,
                  int64_t* first, int64_t* last) {
  const int64_t offset = tap * dilation - padding;
  const int64_t begin = offset < 0 ? (-offset + stride - 1) / stride : 0;
  const int64_t room = size - 1 - offset;
  const int64_t end = room < 0 ? 0 : room / stride + 1;
  *first = begin < outputs ? begin : outputs;
  *last = end < outputs ? end : outputs;
}

// scatter, one row of the map of one group: what every output that sees it through some tap adds
template <typename T, typename A>
void scatter_row(const Problem& p, const T* grad, const T* weight, T* result, A* sums, int64_t y) {
  const Geometry& g = p.geometry;
  const View &q = p.first, &w = p.second, &r = p.result;
  for (int64_t i = 0; i < p.channels * p.width; ++i) sums[i] = 0;
  for (int64_t u = 0; u < g.kernel_h; ++u) {
    const int64_t from = y + g.padding_h - u * g.dilation_h;
    if (from < 0 || from % g.stride_h || from / g.stride_h >= p.out_height) continue;
    const int64_t row = from / g.stride_h;
    for (int64_t t = 0; t < g.kernel_w; ++t) {
      int64_t first, last;
      valid(t, g.stride_w, g.dilation_w, g.padding_w, p.width, p.out_width, &first, &last);
      if (first >= last) continue;
      const int64_t column = first * g.stride_w + t * g.dilation_w - g.padding_w;
      const T* wt = weight + (u * g.kernel_w + t) * w.c + row * w.h + first * w.w;
      for (int64_t d = 0; d < p.channels; ++d) {
        A* __restrict__ s = sums + d * p.width + column;
        const T* gr = grad + d * q.c + row * q.h + first * q.w;
        for (int64_t x = 0; x < last - first; ++x) s[x * g.stride_w] += load<A>(wt[x * w.w]) * load<A>(gr[x * q.w]);
      }
    }
  }
  for (int64_t d = 0; d < p.channels; ++d)
    for (int64_t x = 0; x < p.width; ++x) result[d * r.c + y * r.h + x * r.w] = store<T>(sums[d * p.width + x]);
}

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

// taps [begin, end) along one axis that fall on the map, for a window whose first tap is at `start`
inline void inside(int64_t start, int64_t dilation, int64_t size, int64_t kernel, int64_t* begin, int64_t* end) {
  *begin = start < 0 ? (-start + dilation - 1) / dilation : 0;
  *end = size - 1 - start < 0 ? 0 : (size - 1 - start) / dilation + 1;
  if (*end > kernel) *end = kernel;
}

// channels-last: N neighbouring channels of a group at once; four sums hide the latency of an addition
template <typename T, typename A, int N>
inline void aggregate_channels(const Problem& p, const T* value, const T* weight, T* result, int64_t y, int64_t x) {
  typedef typename Lanes<A, N>::Vector V;
  const Geometry& g = p.geometry;
  const View &v = p.first, &w = p.second;
  V s0 = {}, s1 = {}, s2 = {}, s3 = {};
  const int64_t top = y * g.stride_h - g.padding_h, left = x * g.stride_w - g.padding_w;
  int64_t u, u_end, t_begin, t_end;
  inside(top, g.dilation_h, p.height, g.kernel_h, &u, &u_end);
  inside(left, g.dilation_w, p.width, g.kernel_w, &t_begin, &t_end);
  const int64_t step = g.dilation_w * v.w;
  for (; u < u_end; ++u) {
    const T* from = value + (top + u * g.dilation_h) * v.h + (left + t_begin * g.dilation_w) * v.w;
    const T* tap = weight + (u * g.kernel_w + t_begin) * w.c + y * w.h + x * w.w;
    int64_t t = t_begin;
    for (; t + 4 <= t_end; t += 4, from += 4 * step, tap += 4 * w.c) {
      s0 += load<A>(tap[0]) * load_lanes<A, N>(from);
      s1 += load<A>(tap[w.c]) * load_lanes<A, N>(from + step);
      s2 += load<A>(tap[2 * w.c]) * load_lanes<A, N>(from + 2 * step);
      s3 += load<A>(tap[3 * w.c]) * load_lanes<A, N>(from + 3 * step);
    }
    if (t < t_end) s0 += load<A>(tap[0]) * load_lanes<A, N>(from);
    if (t + 1 < t_end) s1 += load<A>(tap[w.c]) * load_lanes<A, N>(from + step);
    if (t + 2 < t_end) s2 += load<A>(tap[2 * w.c]) * load_lanes<A, N>(from + 2 * step);
  }
  store_lanes<T, A, N>(result, (s0 + s1) + (s2 + s3));
}

// the outputs that see one place of the map along one axis, and through which tap
struct Hits {
  int64_t count, tap[mmrednet::kMaxTaps], output[mmrednet::kMaxTaps];

  void find(int64_t place, int64_t kernel, int64_t stride, int64_t dilation, int64_t padding, int64_t outputs) {
    count = 0;
    for (int64_t t = 0; t < kernel; ++t) {
      const int64_t from = place + padding - t * dilation;
      if (from < 0 || (stride > 1 && from % stride)) continue;
      const int64_t at = stride > 1 ? from / stride : from;
      if (at >= outputs) continue;
      tap[count] = t;
      output[count++] = at;
    }
  }
};

template <typename T, typename A, int N>
inline void scatter_channels(const Problem& p, const T* grad, const T* weight, T* result, const Hits& rows,
                             const Hits& columns) {
  typedef typename Lanes<A, N>::Vector V;
  const View &q = p.first, &w = p.second;
  V s0 = {}, s1 = {};
  for (int64_t i = 0; i < rows.count; ++i) {
    const T* line = grad + rows.output[i] * q.h;
    const T* taps = weight + rows.tap[i] * p.geometry.kernel_w * w.c + rows.output[i] * w.h;
    int64_t j = 0;
    for (; j + 2 <= columns.count; j += 2) {
      s0 += load<A>(taps[columns.tap[j] * w.c + columns.output[j] * w.w]) *
            load_lanes<A, N>(line + columns.output[j] * q.w);
      s1 += load<A>(taps[columns.tap[j + 1] * w.c + columns.output[j + 1] * w.w]) *
            load_lanes<A, N>(line + columns.output[j + 1] * q.w);
    }
    if (j < columns.count)
      s0 += load<A>(taps[columns.tap[j] * w.c + columns.output[j] * w.w]) *
            load_lanes<A, N>(line + columns.output[j] * q.w);
  }
  store_lanes<T, A, N>(result, s0 + s1);
}

// all channels of one position: as many as possible of the widest kind at once
#define MMREDNET_CHANNELS(FUNCTION, N, ...) \
  for (; d + N <= p.channels; d += N) FUNCTION<T, A, N>(p, first + d, second, out + d, __VA_ARGS__);

template <typename T, typename A>
void aggregate_pixel(const Problem& p, const T* first, const T* second, T* out, int64_t y, int64_t x) {
  int64_t d = 0;
  MMREDNET_CHANNELS(aggregate_channels, 16, y, x)
  MMREDNET_CHANNELS(aggregate_channels, 4, y, x)
  MMREDNET_CHANNELS(aggregate_channels, 1, y, x)
}

template <typename T, typename A>
void scatter_pixel(const Problem& p, const T* first, const T* second, T* out, const Hits& rows, const Hits& columns) {
  int64_t d = 0;
  MMREDNET_CHANNELS(scatter_channels, 16, rows, columns)
  MMREDNET_CHANNELS(scatter_channels, 4, rows, columns)
  MMREDNET_CHANNELS(scatter_channels, 1, rows, columns)
}

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

// aggregate: the weights of a row of outputs
template <typename T, typename A>
void aggregate_line(const Problem& p, Rows<T, A>& rows, const T* weight, T* result, A* weights, int64_t y) {
  const Geometry& g = p.geometry;
  const View& w = p.second;
  const int64_t pitch = mmrednet::padded(p.out_width);
  for (int64_t u = 0; u < g.kernel_h; ++u) {
    const int64_t row = y * g.stride_h + u * g.dilation_h - g.padding_h;
    if (row < 0 || row >= p.height) continue;
    rows.hold(row);
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

// lines [begin, end) of the problem, a line being one row of one group of one image; `memory` holds p.scratch bytes
template <typename T, typename A>
void run(const Problem& p, const void* first_data, const void* second_data, void* result_data, void* memory,
         int64_t begin, int64_t end) {
  const bool scatter = p.kind == mmrednet::kScatter, correlate = p.kind == mmrednet::kCorrelate;
  const bool pixels = mmrednet::by_pixels(p), flip = scatter && !pixels && mmrednet::can_flip(p);
  const Problem f = flip ? mmrednet::flipped(p) : p;
  Rows<T, A> rows(f, correlate ? p.second : p.first, static_cast<char*>(memory));
  A* scratch = reinterpret_cast<A*>(static_cast<char*>(memory) + mmrednet::rows_bytes(f, sizeof(A)));
  Hits hit_rows, hit_columns;
  const Geometry& g = p.geometry;
  for (int64_t line = begin; line < end; ++line) {
    // groups of one row lie together in a channels-last map
    const int64_t image = line / p.lines / p.groups, rest = line % (p.lines * p.groups);
    const int64_t y = pixels ? rest / p.groups : rest % p.lines, group = pixels ? rest % p.groups : rest / p.lines;
    const T* first = static_cast<const T*>(first_data) + image * p.first.b + group * p.first.g;
    const T* second = static_cast<const T*>(second_data) + image * p.second.b + group * p.second.g;
    T* out = static_cast<T*>(result_data) + image * p.result.b + group * p.result.g;
    if (pixels && scatter) {
      hit_rows.find(y, g.kernel_h, g.stride_h, g.dilation_h, g.padding_h, p.out_height);
      for (int64_t x = 0; x < p.width; ++x) {
        hit_columns.find(x, g.kernel_w, g.stride_w, g.dilation_w, g.padding_w, p.out_width);
        scatter_pixel<T, A>(p, first, second, out + y * p.result.h + x * p.result.w, hit_rows, hit_columns);
      }
    } else if (pixels) {
      for (int64_t x = 0; x < p.out_width; ++x)
        aggregate_pixel<T, A>(p, first, second, out + y * p.result.h + x * p.result.w, y, x);
    } else if (correlate) {
      rows.look_at(second);
      correlate_row<T, A>(p, rows, first, out, scratch, y);
    } else if (flip) {
      rows.look_at(first);
      scatter_line<T, A>(f, rows, second, out, scratch, y);
    } else if (scatter) {
      scatter_row<T, A>(p, first, second, out, scratch, y);
    } else {
      rows.look_at(first);
      aggregate_line<T, A>(p, rows, second, out, scratch, y);
    }
  }
}

#undef MMREDNET_CHANNELS

void run_float(const Problem& p, const void* a, const void* b, void* r, void* s, int64_t begin, int64_t end) {
  run<float, float>(p, a, b, r, s, begin, end);
}
void run_double(const Problem& p, const void* a, const void* b, void* r, void* s, int64_t begin, int64_t end) {
  run<double, double>(p, a, b, r, s, begin, end);
}
void run_bfloat16(const Problem& p, const void* a, const void* b, void* r, void* s, int64_t begin, int64_t end) {
  run<mmrednet::BFloat16, float>(p, a, b, r, s, begin, end);
}

}  // namespace MMREDNET_NAMESPACE
