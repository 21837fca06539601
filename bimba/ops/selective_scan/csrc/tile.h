// What both passes of the scan share: its arguments, and the reading of a tile of 64 positions.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "vec.h"

// What Python hands over (ctypes mirrors it in cpp.py). R directions, the second of which runs the other way than the
// first. Tensors of the sequence are (R, B, L or Q, D or N) with a contiguous last axis and three strides, all of them
// float32 or all bfloat16; all others are float32 and contiguous. Null where not given.
struct Arguments {
  int64_t directions, batch, length, channels, states, outputs, threads, ranges;
  int64_t softplus, reverse, bfloat16;
  const void *u, *delta, *B, *C;
  int64_t u_strides[3], delta_strides[3], B_strides[3], C_strides[3];
  const float *A, *D, *bias;   // (R, D, N), (R, D), (R, D)
  const float* initial_state;  // (R, B, D, N)
  const int64_t* query_index;  // (Q,); null: every position
  float *y, *last_state;       // (R, B, Q, D), (R, B, D, N)
  float* starts;               // (R, B, tiles, N, D): the states before each tile
  const float *dy, *dlast;     // (R, B, Q, D), (R, B, D, N)
  float *du, *ddelta;          // (R, B, L, D)
  float *dA, *dD, *dbias;      // (R, B, D, N), (R, B, D), (R, B, D)
  float *dB, *dC;              // (ranges, R, B, L, N), (ranges, R, B, Q, N)
  float* dinitial;             // (R, B, D, N)
};

namespace {

constexpr int TILE = 64;

// One input tensor of a sample: element (token, channel or state) at data[token * stride + ...].
template <typename T>
struct Rows {
  const T* data;
  int64_t stride;
  const T* operator[](int64_t row) const { return data + row * stride; }
};

// One row of the work: a sample in one direction.
struct Scan : Arguments {
  int64_t tiles, vectors, direction, sample, row;

  Scan(const Arguments& a, int64_t row)
      : Arguments(a), tiles((length + TILE - 1) / TILE), vectors((channels + LANES - 1) / LANES),
        direction(row / batch), sample(row % batch), row(row) {
    reverse = reverse != (direction == 1);
  }
  int64_t token(int64_t position) const { return reverse ? length - 1 - position : position; }
  int size_of_tile(int64_t start) const { return int(std::min<int64_t>(TILE, length - start)); }

  float* start_of(int64_t tile) const { return starts + (row * tiles + tile) * states * channels; }

  template <typename T>
  Rows<T> rows(const void* x, const int64_t* strides) const {
    return {static_cast<const T*>(x) + direction * strides[0] + sample * strides[1], strides[2]};
  }
};

// The outputs among the positions of one tile, in the order of the scan.
struct TileQueries {
  int count = 0;
  int local[TILE + 1];    // place in the tile; behind the last a place that is in no tile
  int64_t output[TILE];   // place among the outputs

  TileQueries(const Scan& s, int64_t start, int size) {
    find(s, start, size);
    local[count] = TILE;
  }

 private:
  void find(const Scan& s, int64_t start, int size) {
    if (s.query_index == nullptr) {
      for (int i = 0; i < size; ++i) add(i, s.token(start + i));
      return;
    }
    const int64_t first = s.reverse ? s.length - start - size : start;  // tokens of the tile: [first, first + size)
    const int64_t* end = s.query_index + s.outputs;
    const int64_t* from = std::lower_bound(s.query_index, end, first);
    const int64_t* to = std::lower_bound(from, end, first + size);
    for (int64_t i = 0, n = to - from; i < n; ++i) {
      const int64_t* q = s.reverse ? to - 1 - i : from + i;
      add(int(s.reverse ? first + size - 1 - *q : *q - first), q - s.query_index);
    }
  }

  void add(int place, int64_t index) { local[count] = place; output[count++] = index; }
};

// (D, N) in memory, one vector of channels of it: x[n]. Null stands for zeros.
std::vector<vec> load_channels(const float* x, int64_t states, int64_t channel, int lanes) {
  std::vector<vec> result(states);
  if (x == nullptr) return result;
  for (int i = 0; i < lanes; ++i)
    for (int64_t n = 0; n < states; ++n) result[n][i] = x[(channel + i) * states + n];
  return result;
}

void store_channels(float* x, const std::vector<vec>& values, int64_t channel, int lanes) {
  const int64_t states = int64_t(values.size());
  for (int i = 0; i < lanes; ++i)
    for (int64_t n = 0; n < states; ++n) x[(channel + i) * states + n] = values[n][i];
}

struct Parameters {  // of one vector of channels
  int64_t channel;   // its first
  int lanes;         // how many there are
  std::vector<vec> A_log2;
  vec D, bias;
  vec longest = splat(__builtin_inff());  // of shorter steps all exponents are within BOUND

  Parameters(const Scan& s, int64_t vector)
      : channel(vector * LANES), lanes(int(std::min<int64_t>(LANES, s.channels - channel))),
        A_log2(load_channels(s.A + s.direction * s.channels * s.states, s.states, channel, lanes)) {
    for (vec& x : A_log2) {
      x *= LOG2_E;
      const vec limit = BOUND / magnitude(x);
      longest = (longest > limit) | (limit != limit) ? limit : longest;  // NaN, once it is
    }
    const int64_t at = s.direction * s.channels + channel;
    D = s.D != nullptr ? load_part(s.D + at, lanes) : vec{};
    bias = s.bias != nullptr ? load_part(s.bias + at, lanes) : vec{};
  }
};

// One row of a (R, B, D, N) tensor.
template <typename T>
T* of_row(const Scan& s, T* x) { return x == nullptr ? nullptr : x + s.row * s.channels * s.states; }

// A tile of one vector of channels: what does not depend on the state.
struct TileInputs {
  vec u[TILE], step[TILE], step_u[TILE];
  vec delta[TILE];  // with its bias, before softplus; of a backward pass only
};

// Rows whose softplus is computed at a time: one alone is a long chain, each instruction of which waits for the last.
constexpr int ROWS_AT_ONCE = 4;

// Reads a tile, `delta` only for a backward pass. Returns whether all exponents are within BOUND.
template <typename T>
bool read_tile(const Scan& s, const Parameters& p, int64_t start, bool with_delta, TileInputs& in) {
  const int size = s.size_of_tile(start);
  const Rows<T> u_rows = s.rows<T>(s.u, s.u_strides), delta_rows = s.rows<T>(s.delta, s.delta_strides);
  const T *u = u_rows[s.token(start)] + p.channel, *delta = delta_rows[s.token(start)] + p.channel;
  const int64_t u_stride = s.reverse ? -u_rows.stride : u_rows.stride;
  const int64_t delta_stride = s.reverse ? -delta_rows.stride : delta_rows.stride;
  uvec longest = {};
  const auto read = [&](auto lanes) {
    for (int i = 0; i < size; i += ROWS_AT_ONCE) {
      vec step[ROWS_AT_ONCE];
      const auto row = [&](int k) { return std::min(i + k, size - 1); };  // behind the last one that one again
      for (int k = 0; k < ROWS_AT_ONCE; ++k) step[k] = load_part(delta + row(k) * delta_stride, lanes) + p.bias;
      if (with_delta)
        for (int k = 0; k < ROWS_AT_ONCE; ++k) in.delta[row(k)] = step[k];
      if (s.softplus) softplus(step);
      for (int k = 0; k < ROWS_AT_ONCE; ++k) {
        const vec x = load_part(u + row(k) * u_stride, lanes);
        in.u[row(k)] = x;
        in.step[row(k)] = step[k];
        in.step_u[row(k)] = step[k] * x;
        // The bits of positive floats are in the order of the floats; behind them come NaN, and all that is negative.
        longest = (uvec)step[k] > longest ? (uvec)step[k] : longest;
      }
    }
  };
  if (p.lanes == LANES) read(std::integral_constant<int, LANES>());
  else read(p.lanes);
  return all(((ivec)longest >= 0) & ((vec)longest < p.longest));
}

// Calls for the memory of another tile in the order in which it lies there, a line of u and one of delta at a time:
// vector by vector, rows lie too far apart for the processor to foresee them, and each waits for the memory. Every
// vector of channels calls for as many lines as a tile has rows; beside a short tile some are left out, or called for
// beyond the sequence, which does nothing.
template <typename T>
struct Prefetcher {
  const T *u, *delta;          // the first channels of a row
  int64_t u_step, delta_step;  // to those of the next one
  int64_t width, next;         // of a row in channels, and the one that is called for next

  // Of the tile at `start`; `index`: which of the `count` vectors from `first` on it is that calls.
  Prefetcher(const Scan& s, int64_t start, int64_t first, int64_t count, int64_t index)
      : width(count * LANES), next(index * TILE % count * LANES) {
    const Rows<T> u_rows = s.rows<T>(s.u, s.u_strides), delta_rows = s.rows<T>(s.delta, s.delta_strides);
    const int64_t token = s.token(start + index * TILE / count);
    u = u_rows[token] + first * LANES;
    delta = delta_rows[token] + first * LANES;
    u_step = s.reverse ? -u_rows.stride : u_rows.stride;
    delta_step = s.reverse ? -delta_rows.stride : delta_rows.stride;
  }

  void operator()() {
    __builtin_prefetch(u + next);
    __builtin_prefetch(delta + next);
    next += LANES;
    if (next < width) return;
    next = 0;
    u += u_step;
    delta += delta_step;
  }
};

// B or C of a tile as float32, in the order of the scan: x[i][n] at data[i * states + n].
template <typename T>
void read_states(const Scan& s, Rows<T> source, int64_t start, int size, float* x) {
  for (int i = 0; i < size; ++i) {
    const T* row = source[s.token(start + i)];
    for (int64_t n = 0; n < s.states; ++n) *x++ = to_float(row[n]);
  }
}

template <typename T>
void read_queries(const Scan& s, Rows<T> source, const TileQueries& queries, float* x) {
  for (int q = 0; q < queries.count; ++q) {
    const T* row = source[queries.output[q]];
    for (int64_t n = 0; n < s.states; ++n) *x++ = to_float(row[n]);
  }
}

// Where the gradients of one vector of channels go, position by position of a tile.
struct GradientRows {
  float *first_du, *first_ddelta;
  int64_t stride;

  GradientRows(const Scan& s, int64_t start, int64_t channel) : stride(s.reverse ? -s.channels : s.channels) {
    const int64_t offset = (s.row * s.length + s.token(start)) * s.channels + channel;
    first_du = s.du + offset;
    first_ddelta = s.ddelta + offset;
  }
  float* du(int i) const { return first_du + i * stride; }
  float* ddelta(int i) const { return first_ddelta + i * stride; }
};

// exp(step A)
template <bool BOUNDED>
inline vec decay_of(vec step, vec A_log2) {
  if constexpr (BOUNDED) return exp2_product(step, A_log2);
  return exp2(step * A_log2);
}

// Calls f<SIZE>, f<SIZE / 2>, ... on successive groups of states until all are done.
template <int SIZE, typename F>
void for_groups(int64_t states, F&& f, int64_t n = 0) {
  for (; n + SIZE <= states; n += SIZE) f(std::integral_constant<int, SIZE>(), n);
  if constexpr (SIZE > 1) for_groups<SIZE / 2>(states, f, n);
}

}  // namespace
