// Products of matrices that are in the cache, of any size: for tiles faster than a BLAS, which is made for large ones.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace products {

using std::int64_t;

// As many bytes as a vector instruction takes; and as many sums as registers hold, beside what they are made of.
#if defined(__AVX512F__)
constexpr int BYTES = 64, ROWS = 8;
#elif defined(__AVX__)
constexpr int BYTES = 32, ROWS = 4;
#else
constexpr int BYTES = 16, ROWS = 8;
#endif
constexpr int VECTORS = 3;
constexpr int64_t DEPTH = 128;  // numbers that are added up before the next column: as much of y stays in the cache

template <typename T>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(BYTES)));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(BYTES)));
};

// z = x (R, k) · y (k, C vectors) + beta · z; the first `made` columns of z are left as they are.
template <int R, int C, typename T>
inline void block(int64_t k, const T* x, int64_t x_row, int64_t x_column, const T* y, int64_t y_row, T beta, T* z,
                  int64_t z_row, int64_t made) {
  using V = typename Vector<T>::type;
  constexpr int LANES = BYTES / sizeof(T);
  V sums[R][C] = {};
  for (int64_t p = 0; p < k; ++p, x += x_column, y += y_row) {
    V columns[C];
#pragma GCC unroll 3
    for (int c = 0; c < C; ++c) std::memcpy(&columns[c], y + c * LANES, BYTES);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
      for (int c = 0; c < C; ++c) sums[r][c] += x[r * x_row] * columns[c];
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r, z += z_row)
#pragma GCC unroll 3
    for (int c = 0; c < C; ++c) {
      if (beta != 0) {
        V before;
        std::memcpy(&before, z + c * LANES, BYTES);
        sums[r][c] += beta * before;
      }
      if (made == 0) {
        std::memcpy(z + c * LANES, &sums[r][c], BYTES);
      } else {  // C is 1
        T numbers[LANES];
        std::memcpy(numbers, &sums[r][c], BYTES);
        std::copy(numbers + made, numbers + LANES, z + made);
      }
    }
}

template <int C, typename T>
inline void blocks(int64_t m, int64_t k, const T* x, int64_t x_row, int64_t x_column, const T* y, int64_t y_row, T beta,
                   T* z, int64_t z_row, int64_t made) {
  int64_t i = 0;
  for (; i + ROWS <= m; i += ROWS)
    block<ROWS, C>(k, x + i * x_row, x_row, x_column, y, y_row, beta, z + i * z_row, z_row, made);
  for (; i < m; ++i) block<1, C>(k, x + i * x_row, x_row, x_column, y, y_row, beta, z + i * z_row, z_row, made);
}

// z (m, n) = x (m, k) · y (k, n) + beta · z. Numbers of x lie as far apart as is said, those of y and z in rows.
template <typename T>
void product(int64_t m, int64_t n, int64_t k, const T* x, int64_t x_row, int64_t x_column, const T* y, int64_t y_row,
             T beta, T* z, int64_t z_row) {
  constexpr int64_t LANES = BYTES / sizeof(T);
  for (int64_t p = 0; p < k; p += DEPTH, x += DEPTH * x_column, y += DEPTH * y_row, beta = 1) {
    const int64_t depth = std::min(DEPTH, k - p);
    int64_t j = 0;
    for (int64_t left = n / LANES; left > 0;) {
      const int64_t count = left == VECTORS + 1 ? 2 : std::min<int64_t>(left, VECTORS);  // one alone is slow
      const auto run = count == 3 ? blocks<3, T> : count == 2 ? blocks<2, T> : blocks<1, T>;
      run(m, depth, x, x_row, x_column, y + j, y_row, beta, z + j, z_row, 0);
      j += count * LANES, left -= count;
    }
    if (j < n && n >= LANES)  // the last vector of a row, some of whose columns are made
      blocks<1, T>(m, depth, x, x_row, x_column, y + n - LANES, y_row, beta, z + n - LANES, z_row, LANES - (n - j));
    else
      for (int64_t i = 0; i < m; ++i)
        for (int64_t c = j; c < n; ++c) {
          T sum = 0;
          for (int64_t q = 0; q < depth; ++q) sum += x[i * x_row + q * x_column] * y[q * y_row + c];
          z[i * z_row + c] = beta == 0 ? sum : sum + beta * z[i * z_row + c];
        }
  }
}

}  // namespace products
