// Banded attention on a CPU, forward and backward: a tile of queries goes from scores to output while it is in the
// cache, and what is not kept is computed again. `tiles.py` builds this and knows the same structures.
//
// B batch, M block, H heads, h heads of a group, D head size, T positions of a group, of which the last M are the
// present, S span of a head, m queries of a tile, W = S + m - 1 positions that they see, N persistent vectors.
//
// The scores of a tile are a matrix (m, W) by absolute position. Read with rows one element further apart it is the
// band, (m, S) by distance: row r starts at column r.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "products.h"

using products::product;
using std::int64_t;

namespace {

template <typename T>
struct Head {
  const T *query, *keys_values;           // (B, M, h, D), scaled, and (B, T, h, 2, D), from this head on
  T *grad_query, *grad_keys_values;       // as these
  const T* key_bias;                      // (B, T), or null
  T* grad_position;                       // (P, D, S)
  const uint8_t* keep;                    // (B, h, tiles, rows, columns), from the first weight on: 1 where it stays
  int64_t keep_rows, keep_columns;        // of the tiles that the mask was drawn for
  int64_t index, group, positions, span;  // number of H, h, T, S
};

template <typename T>
struct Layer {
  const Head<T>* heads;                             // (H,), the longest span first
  const T *position, *position_along;               // (D, L), (L, D); or null
  const T *log_mask, *memory_key, *memory_value;    // (H, L), (H, D, N), (H, N, D); or null
  const T *memory_key_along, *memory_value_across;  // (H, N, D), (H, D, N), of the backward pass; or null
  T *output, *log_sum;                              // (B, M, H, D), (B, H, M)
  const T* grad;                                    // (B, M, H, D)
  T *grad_position, *grad_log_mask;                 // (D, L), and of each part of the batch (P, H, L): zeros
  T *grad_memory_key, *grad_memory_value;           // (P, H, D, N), (P, H, N, D): zeros
  int64_t batch, block, num_heads, size, longest, memory, parts;  // B, M, H, D, L, N, P
  int64_t position_stride;
  double scale;  // of the weights that dropout keeps
};

inline double exponential(double x) { return std::exp(x); }

// 2^n · e^r with |r| <= ln 2 / 2, to an ulp or two. Unlike the library's, a loop of it becomes vector instructions.
inline float exponential(float x) {
  const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounded to a whole number
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(std::max(n, -126.0f)) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < -87.0f ? 0.0f : p * power;
}

constexpr int64_t MOST_ROWS = 64;
inline int64_t tile_rows(int64_t span) { return span <= 512 ? 16 : MOST_ROWS; }

// A row of a tile: scores, then weights; and with `grad` the gradients of these. Each loop is vector instructions.
template <typename T>
struct Row {
  T *x, *grad;
  const T* mask;
  const uint8_t* kept;
  T scale;
  int64_t count;

  T add_mask() const {  // and return the largest score
    T top = -std::numeric_limits<T>::infinity();
#pragma omp simd
    for (int64_t j = 0; j < (mask ? count : 0); ++j) x[j] += mask[j];
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < count; ++j) top = x[j] > top ? x[j] : top;
    return top;
  }
  T to_weights(T less) const {  // from scores from which `less` is taken; and return their sum
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; ++j) sum += x[j] = exponential(x[j] - less);
    return sum;
  }
  T inner() const {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; ++j) sum += x[j] * grad[j];
    return sum;
  }
  void to_grad_scores(T inner, T* grad_mask) const {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) grad[j] = x[j] * (grad[j] - inner);
#pragma omp simd
    for (int64_t j = 0; j < (grad_mask ? count : 0); ++j) grad_mask[j] += grad[j];
  }
  void drop(T* values) const {
#pragma omp simd
    for (int64_t j = 0; j < (kept ? count : 0); ++j) values[j] *= scale * static_cast<T>(kept[j]);
  }
};

// Zeros beside the band, and in its first `skipped` columns, which products then pass over.
template <typename T>
void clear_outside(T* tile, int64_t rows, int64_t span, int64_t skipped) {
  const int64_t width = span + rows - 1;
  for (int64_t r = 0; r < rows; ++r) {
    std::fill_n(tile + r * width, std::max(r, skipped), T(0));
    std::fill_n(tile + r * width + r + span, rows - 1 - r, T(0));
  }
}

// y (columns, rows) = x (rows, columns). A product reads its second matrix in whole vectors along its rows, so keys and
// values are packed that way.
template <typename T>
void transposed(const T* x, int64_t x_stride, int64_t rows, int64_t columns, T* y, int64_t y_stride) {
  constexpr int64_t EDGE = 16;
  T block[EDGE][EDGE];  // rows that lie a power of two apart would drive each other out of the cache
  for (int64_t i = 0; i < rows; i += EDGE)
    for (int64_t j = 0; j < columns; j += EDGE) {
      const T* from = x + i * x_stride + j;
      T* to = y + j * y_stride + i;
      if (i + EDGE <= rows && j + EDGE <= columns) {  // in vector instructions
        for (int64_t r = 0; r < EDGE; ++r) std::memcpy(block[r], from + r * x_stride, sizeof block[r]);
        for (int64_t c = 0; c < EDGE; ++c)
          for (int64_t r = 0; r < EDGE; ++r) to[c * y_stride + r] = block[r][c];
      } else
        for (int64_t r = 0; r < std::min(EDGE, rows - i); ++r)
          for (int64_t c = 0; c < std::min(EDGE, columns - j); ++c) to[c * y_stride + r] = from[r * x_stride + c];
    }
}

// What a thread computes with: keys and values packed, their gradients, and a tile's weights. Its memory stays with the
// thread, since fresh pages cost more than what is written to them.
template <typename T>
struct Scratch {
  T *keys_across, *values_across, *along, *grad_keys, *grad_values, *tile, *grad_tile, *memory, *grad_memory;

  explicit Scratch(const Layer<T>& l) {
    const int64_t packed = l.size * (l.longest + l.block), weights = MOST_ROWS * (l.longest + MOST_ROWS);
    static thread_local std::vector<T> all;
    all.resize(std::max<size_t>(all.size(), 5 * packed + 2 * weights + 2 * MOST_ROWS * l.memory));
    keys_across = all.data(), values_across = keys_across + packed, along = values_across + packed;
    grad_keys = along + packed, grad_values = grad_keys + packed, tile = grad_values + packed;
    grad_tile = tile + weights, memory = grad_tile + weights, grad_memory = memory + MOST_ROWS * l.memory;
  }
};

// One head in one row of the batch: where its tensors start, and how far apart their rows are.
template <typename T>
struct Place {
  const Layer<T>& layer;
  const Head<T>& head;
  int64_t b, seen, stride, kv_stride, out_stride;  // seen: S + M - 1 positions of the head's
  int64_t hidden;                                  // of these, the first ones, which the bias hides
  const T *query, *key, *bias, *position, *mask;

  Place(const Layer<T>& l, const Head<T>& head, int64_t b) : layer(l), head(head), b(b) {
    seen = head.span + l.block - 1;
    stride = head.group * l.size, kv_stride = 2 * stride, out_stride = l.num_heads * l.size;
    query = head.query + b * l.block * stride;
    key = head.keys_values + first_seen();  // the values are `size` further
    bias = head.key_bias ? head.key_bias + (b + 1) * head.positions - l.block - head.span : nullptr;
    hidden = bias ? std::find(bias, bias + seen, T(0)) - bias : 0;
    position = l.position ? l.position + l.longest - head.span : nullptr;
    mask = l.log_mask ? l.log_mask + (head.index + 1) * l.longest - head.span : nullptr;
  }
  const T* own(const T* memory) const { return memory + head.index * layer.size * layer.memory; }  // of all heads'
  int64_t first_seen() const { return ((b + 1) * head.positions - layer.block - head.span) * kv_stride; }
  int64_t out(int64_t query) const { return ((b * layer.block + query) * layer.num_heads + head.index) * layer.size; }
  T& log_sum(int64_t query) const { return layer.log_sum[(b * layer.num_heads + head.index) * layer.block + query]; }
  // The columns of a tile that are left out: the hidden ones before its text begins.
  int64_t skipped(int64_t first) const { return std::clamp<int64_t>(hidden - first, 0, head.span - 1); }
  // What a query weighs: its band, and the memory.
  std::array<Row<T>, 2> rows(const Scratch<T>& s, int64_t first, int64_t r, int64_t width) const {
    const uint8_t *kept = nullptr, *kept_memory = nullptr;
    if (head.keep) {
      const int64_t tiles = (layer.block + head.keep_rows - 1) / head.keep_rows;
      const int64_t tile = (first + r) / head.keep_rows, in_tile = (first + r) % head.keep_rows;
      kept_memory = head.keep + ((b * head.group * tiles + tile) * head.keep_rows + in_tile) * head.keep_columns;
      kept = kept_memory + in_tile, kept_memory += head.span + head.keep_rows - 1;
    }
    const T scale = static_cast<T>(layer.scale);
    const int64_t out = std::max<int64_t>(skipped(first) - r, 0);  // of the band
    const int64_t band = r * (width + 1) + out, to_memory = r * layer.memory;
    return {{{s.tile + band, s.grad_tile + band, mask ? mask + out : mask, kept ? kept + out : kept, scale,
              head.span - out},
             {s.memory + to_memory, s.grad_memory + to_memory, nullptr, kept_memory, scale, layer.memory}}};
  }
  // q·(k + p), in the band of `tile`, and q·k of the memory.
  void scores(const T* keys_across, int64_t first, int64_t rows, T* tile, T* to_memory) const {
    const int64_t size = layer.size, width = head.span + rows - 1, from = skipped(first);
    const T* q = query + first * stride;
    if (position)
      product<T>(rows, head.span, size, q, stride, 1, position, layer.position_stride, 0, tile, width + 1);
    product<T>(rows, width - from, size, q, stride, 1, keys_across + first + from, seen, position ? 1 : 0, tile + from,
               width);
    for (int64_t r = 0; r < (bias ? rows : 0); ++r)
      for (int64_t j = from; j < width; ++j) tile[r * width + j] += bias[first + j];
    if (layer.memory)
      product<T>(rows, layer.memory, size, q, stride, 1, own(layer.memory_key), layer.memory, 0, to_memory,
                 layer.memory);
  }
};

template <typename T>
void forward(const Place<T>& p, Scratch<T>& s) {
  const Layer<T>& l = p.layer;
  const int64_t span = p.head.span, size = l.size, most = tile_rows(span);
  transposed(p.key, p.kv_stride, p.seen, size, s.keys_across, p.seen);
  for (int64_t t = 0; t < p.seen; ++t) std::copy_n(p.key + t * p.kv_stride + size, size, s.along + t * size);
  for (int64_t first = 0; first < l.block; first += most) {
    const int64_t rows = std::min(most, l.block - first), width = span + rows - 1, from = p.skipped(first);
    T sums[MOST_ROWS], *out = l.output + p.out(first);
    p.scores(s.keys_across, first, rows, s.tile, s.memory);
    for (int64_t r = 0; r < rows; ++r) {
      const auto [row, memory] = p.rows(s, first, r, width);
      const T highest = std::max(row.add_mask(), memory.add_mask());
      const T top = highest < std::numeric_limits<T>::lowest() ? 0 : highest;  // one that sees nothing gets zeros
      sums[r] = std::max<T>(row.to_weights(top) + memory.to_weights(top), 1);
      p.log_sum(first + r) = top + std::log(sums[r]);
      row.drop(row.x), memory.drop(memory.x);
    }
    clear_outside(s.tile, rows, span, from);
    product<T>(rows, size, width - from, s.tile + from, width, 1, s.along + (first + from) * size, size, 0, out,
               p.out_stride);
    if (l.memory)
      product<T>(rows, size, l.memory, s.memory, l.memory, 1, p.own(l.memory_value), size, 1, out, p.out_stride);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < size; ++j) out[r * p.out_stride + j] /= sums[r];
  }
}

template <typename T>
void backward(const Place<T>& p, int64_t part, Scratch<T>& s) {
  const Layer<T>& l = p.layer;
  const int64_t span = p.head.span, size = l.size, most = tile_rows(span), place = part * l.num_heads + p.head.index;
  T* grad_query = p.head.grad_query + p.b * l.block * p.stride;
  T* grad_key = p.head.grad_keys_values + p.b * p.head.positions * p.kv_stride;
  T* grad_position = p.head.grad_position + part * size * span;
  T* grad_mask = p.mask ? l.grad_log_mask + (place + 1) * l.longest - span : nullptr;
  transposed(p.key, p.kv_stride, p.seen, size, s.keys_across, p.seen);
  transposed(p.key + size, p.kv_stride, p.seen, size, s.values_across, p.seen);
  for (int64_t t = 0; t < p.seen; ++t) std::copy_n(p.key + t * p.kv_stride, size, s.along + t * size);
  std::fill_n(s.grad_keys, size * p.seen, T(0));
  std::fill_n(s.grad_values, size * p.seen, T(0));
  for (int64_t first = 0; first < l.block; first += most) {
    const int64_t rows = std::min(most, l.block - first), width = span + rows - 1, from = p.skipped(first);
    const int64_t seen = width - from;
    const T *q = p.query + first * p.stride, *g = l.grad + p.out(first);
    T* dq = grad_query + first * p.stride;
    p.scores(s.keys_across, first, rows, s.tile, s.memory);
    product<T>(rows, seen, size, g, p.out_stride, 1, s.values_across + first + from, p.seen, 0, s.grad_tile + from,
               width);
    if (l.memory)
      product<T>(rows, l.memory, size, g, p.out_stride, 1, p.own(l.memory_value_across), l.memory, 0, s.grad_memory,
                 l.memory);
    for (int64_t r = 0; r < rows; ++r) {
      const auto [row, memory] = p.rows(s, first, r, width);
      row.add_mask(), row.to_weights(p.log_sum(first + r)), memory.to_weights(p.log_sum(first + r));
      row.drop(row.grad), memory.drop(memory.grad);
      const T inner = row.inner() + memory.inner();
      row.to_grad_scores(inner, grad_mask ? grad_mask + span - row.count : nullptr);
      memory.to_grad_scores(inner, nullptr);
      row.drop(row.x), memory.drop(memory.x);
    }
    clear_outside(s.tile, rows, span, from);
    clear_outside(s.grad_tile, rows, span, from);
    product<T>(rows, size, seen, s.grad_tile + from, width, 1, s.along + (first + from) * size, size, 0, dq, p.stride);
    if (p.position)
      product<T>(rows, size, span, s.grad_tile, width + 1, 1, l.position_along + (l.longest - span) * size, size, 1, dq,
                 p.stride);
    product<T>(size, seen, rows, q, 1, p.stride, s.grad_tile + from, width, 1, s.grad_keys + first + from, p.seen);
    product<T>(size, seen, rows, g, 1, p.out_stride, s.tile + from, width, 1, s.grad_values + first + from, p.seen);
    if (p.position)
      product<T>(size, span, rows, q, 1, p.stride, s.grad_tile, width + 1, 1, grad_position, span);
    if (l.memory) {
      T *mk = l.grad_memory_key + place * size * l.memory, *mv = l.grad_memory_value + place * size * l.memory;
      product<T>(rows, size, l.memory, s.grad_memory, l.memory, 1, p.own(l.memory_key_along), size, 1, dq, p.stride);
      product<T>(size, l.memory, rows, q, 1, p.stride, s.grad_memory, l.memory, 1, mk, l.memory);
      product<T>(l.memory, size, rows, s.memory, 1, l.memory, g, p.out_stride, 1, mv, size);
    }
  }
  T* grad_seen = p.head.grad_keys_values + p.first_seen();
  for (T* grad = grad_key; grad < grad_seen; grad += p.kv_stride) std::fill_n(grad, 2 * size, T(0));
  std::fill_n(grad_seen + p.seen * p.kv_stride, 2 * size, T(0));  // no query sees the newest position
  transposed(s.grad_keys, p.seen, size, p.seen, grad_seen, p.kv_stride);
  transposed(s.grad_values, p.seen, size, p.seen, grad_seen + size, p.kv_stride);
}

// A head in a part of the batch is one piece of work, and the order of its sums is the same whoever does it.
template <typename T>
void run(const Layer<T>& l, bool is_forward) {
#pragma omp parallel
  {
    Scratch<T> scratch(l);
#pragma omp for schedule(dynamic, 1)
    for (int64_t piece = 0; piece < l.num_heads * l.parts; ++piece) {
      const Head<T>& head = l.heads[piece / l.parts];
      const int64_t part = piece % l.parts;
      if (!is_forward && l.position) std::fill_n(head.grad_position + part * l.size * head.span, l.size * head.span, T(0));
      for (int64_t b = part; b < l.batch; b += l.parts)
        is_forward ? forward(Place<T>(l, head, b), scratch) : backward(Place<T>(l, head, b), part, scratch);
    }
    if (!is_forward && l.position)
#pragma omp for
      for (int64_t d = 0; d < l.size; ++d)
        for (int64_t piece = 0; piece < l.num_heads * l.parts; ++piece) {
          const Head<T>& head = l.heads[piece / l.parts];
          const T* found = head.grad_position + (piece % l.parts * l.size + d) * head.span;
          T* sum = l.grad_position + (d + 1) * l.longest - head.span;
          for (int64_t j = 0; j < head.span; ++j) sum[j] += found[j];
        }
  }
}

}  // namespace

extern "C" {
void forward_float(const Layer<float>* layer) { run(*layer, true); }
void forward_double(const Layer<double>* layer) { run(*layer, true); }
void backward_float(const Layer<float>* layer) { run(*layer, false); }
void backward_double(const Layer<double>* layer) { run(*layer, false); }
}
