// Attention from one token of each text, for all heads of a layer at once, each as far as it sees. `decoding.py` builds
// this and knows the same structures.
//
// B texts, H heads, D head size, L longest span of the layer, S span of a head, N persistent vectors. A ring has S slots,
// and a token that is read takes the place of the oldest one.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

using std::int64_t;

struct Head {
  float* ring;            // keys (S, D), then values (S, D)
  const float* log_mask;  // (S,), oldest first; or null
  int64_t span, row, index;
};

struct Layer {
  const Head* heads;          // (B·H,), the longest span first
  const float* position;      // (L, D), oldest first
  const float* memory_key;    // (H, N, D); or null
  const float* memory_value;  // (H, N, D); or null
  int64_t count, num_heads, size, longest, memory;
};

namespace {

float dot(const float* x, const float* y, int64_t size) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t d = 0; d < size; ++d) sum += x[d] * y[d];
  return sum;
}

// (x + y) · z
float dot_of_sum(const float* x, const float* y, const float* z, int64_t size) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t d = 0; d < size; ++d) sum += (x[d] + y[d]) * z[d];
  return sum;
}

void add(float* total, const float* x, float factor, int64_t size) {
#pragma omp simd
  for (int64_t d = 0; d < size; ++d) total[d] += factor * x[d];
}

void attend(const Layer& layer, const Head& head, const float* query, float* output, int64_t oldest) {
  const int64_t size = layer.size, span = head.span, before = layer.longest - span;
  const float *keys = head.ring, *values = head.ring + span * size;
  static thread_local std::vector<float> weights;
  weights.resize(span + layer.memory);
  float highest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < span; ++i) {
    const int64_t slot = oldest + i < span ? oldest + i : oldest + i - span;
    float score = dot_of_sum(keys + slot * size, layer.position + (before + i) * size, query, size);
    if (head.log_mask) score += head.log_mask[i];
    weights[i] = score;
    highest = std::max(highest, score);
  }
  const int64_t first = head.index * layer.memory * size;
  for (int64_t n = 0; n < layer.memory; ++n) {
    weights[span + n] = dot(layer.memory_key + first + n * size, query, size);
    highest = std::max(highest, weights[span + n]);
  }
  float sum = 0;
  for (float& weight : weights) sum += weight = std::exp(weight - highest);
  std::fill_n(output, size, 0.0f);
  for (int64_t i = 0; i < span; ++i) {
    const int64_t slot = oldest + i < span ? oldest + i : oldest + i - span;
    add(output, values + slot * size, weights[i] / sum, size);
  }
  for (int64_t n = 0; n < layer.memory; ++n) {
    add(output, layer.memory_value + first + n * size, weights[span + n] / sum, size);
  }
}

}  // namespace

// projected (B, 3, H, D): queries times 1 / sqrt(D), keys, values; output (B, H, D); read: tokens so far.
extern "C" void decode(const Layer* layer, const float* projected, float* output, int64_t read) {
  const int64_t size = layer->size, width = layer->num_heads * size;
#pragma omp parallel for schedule(dynamic)
  for (int64_t number = 0; number < layer->count; ++number) {
    const Head& head = layer->heads[number];
    const int64_t oldest = read % head.span, place = head.index * size;
    const float* present = projected + head.row * 3 * width + place;
    attend(*layer, head, present, output + head.row * width + place, oldest);
    std::copy_n(present + width, size, head.ring + oldest * size);
    std::copy_n(present + 2 * width, size, head.ring + (head.span + oldest) * size);
  }
}
