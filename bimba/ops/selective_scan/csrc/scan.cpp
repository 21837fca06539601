// The selective scan on a CPU, forward and backward.
//
// A thread takes one sample and a range of channels, sixteen channels (one vector) at a time, and walks the sequence in
// tiles of 64 positions. What does not depend on the state (softplus, delta * u) is computed per tile; then the states
// of one group stay in registers from token to token. Only queries are written. The forward pass keeps the state at the
// start of every tile; the backward pass recomputes a tile's states from it and walks the tile the other way.
//
// "Position" counts in the order of the scan: with `reverse`, position i is token L - 1 - i.

// Plain C at the border, and no header of torch: it compiles in seconds and fits any version of torch.

#include <algorithm>
#include <thread>
#include <type_traits>
#include <vector>

#include "vec.h"

// What Python hands over (ctypes mirrors it in cpp.py). Tensors of the sequence are (B, L or Q, D or N) with a contiguous
// last axis and two strides, all float32 or all bfloat16; all others are float32 and contiguous. Null where not given.
struct Arguments {
  int64_t batch, length, channels, states, outputs, threads, ranges;
  int64_t softplus, reverse, bfloat16;
  const void *u, *delta, *B, *C;
  int64_t u_strides[2], delta_strides[2], B_strides[2], C_strides[2];
  const float *A;              // (N, D)
  const float *D, *bias;       // (D,)
  const int64_t* query_index;  // (Q,); null: every position
  float* y;                    // (B, Q, D)
  float* starts;               // (B, tiles, vectors, N, 16): the states before each tile
  const float* dy;             // (B, Q, D)
  float *du, *ddelta;          // (B, L, D)
  float *dA, *dD, *dbias;      // (B, N, D), (B, D), (B, D)
  float *dB, *dC;              // (ranges, B, L, N), (ranges, B, Q, N)
};

namespace {

constexpr int TILE = 64;
constexpr int GROUP = 16;  // states that are scanned together

// One input tensor of a sample: element (token, channel or state) at data[token * stride + ...].
template <typename T>
struct Rows {
  const T* data;
  int64_t stride;
  const T* operator[](int64_t row) const { return data + row * stride; }
};

template <typename T>
Rows<T> rows(const void* x, const int64_t* strides, int64_t sample) {
  return {static_cast<const T*>(x) + sample * strides[0], strides[1]};
}

struct Scan : Arguments {
  int64_t tiles, vectors;

  explicit Scan(const Arguments& a)
      : Arguments(a), tiles((length + TILE - 1) / TILE), vectors((channels + LANES - 1) / LANES) {}
  int64_t token(int64_t position) const { return reverse ? length - 1 - position : position; }
};

// The outputs among the positions of one tile, in the order of the scan.
struct TileQueries {
  int count = 0;
  int local[TILE];        // place in the tile
  int64_t output[TILE];   // place among the outputs

  TileQueries(const Scan& s, int64_t start, int size) {
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

struct Parameters {  // of one vector of channels
  int64_t channel;  // its first
  int lanes;        // how many there are
  std::vector<vec> A_log2;
  vec D, bias;

  Parameters(const Scan& s, int64_t vector)
      : channel(vector * LANES), lanes(int(std::min<int64_t>(LANES, s.channels - channel))), A_log2(s.states) {
    for (int64_t n = 0; n < s.states; ++n) A_log2[n] = load_part(s.A + n * s.channels + channel, lanes) * LOG2_E;
    D = s.D != nullptr ? load_part(s.D + channel, lanes) : vec{};
    bias = s.bias != nullptr ? load_part(s.bias + channel, lanes) : vec{};
  }
};

// A tile of one vector of channels: what does not depend on the state.
struct TileInputs {
  vec u[TILE], delta[TILE], step[TILE], step_u[TILE];  // delta: with its bias, before softplus

  template <typename T>
  void read(const Scan& s, int64_t sample, const Parameters& p, int64_t start, int size) {
    const Rows<T> u_rows = rows<T>(s.u, s.u_strides, sample), delta_rows = rows<T>(s.delta, s.delta_strides, sample);
    for (int i = 0; i < size; ++i) {
      const int64_t t = s.token(start + i);
      u[i] = load_part(u_rows[t] + p.channel, p.lanes);
      delta[i] = load_part(delta_rows[t] + p.channel, p.lanes) + p.bias;
      step[i] = s.softplus ? softplus(delta[i]) : delta[i];
      step_u[i] = step[i] * u[i];
    }
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

// Scans N states of a tile; y[q] += sum_n C h at the queries.
template <int N>
void scan_states(const TileInputs& in, int size, const TileQueries& queries, const float* B, const float* C,
                 int64_t states, const vec* A_log2, vec* h_memory, vec* y) {
  vec h[N];
  for (int n = 0; n < N; ++n) h[n] = h_memory[n];
  int q = 0;
  for (int i = 0; i < size; ++i) {
    const vec step = in.step[i], step_u = in.step_u[i];
    const float* b = B + i * states;
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) h[n] = exp2(step * A_log2[n]) * h[n] + step_u * b[n];
    if (q < queries.count && queries.local[q] == i) {
      const float* c = C + q * states;
      vec even = {}, odd = {};
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) (n % 2 ? odd : even) += h[n] * c[n];
      y[q++] += even + odd;
    }
  }
  for (int n = 0; n < N; ++n) h_memory[n] = h[n];
}

// Calls f<16>, f<8>, ... on successive groups of states until all are done.
template <typename F>
void for_groups(int64_t states, F&& f) {
  int64_t n = 0;
  for (; n + 16 <= states; n += 16) f(std::integral_constant<int, 16>(), n);
  if (n + 8 <= states) { f(std::integral_constant<int, 8>(), n); n += 8; }
  if (n + 4 <= states) { f(std::integral_constant<int, 4>(), n); n += 4; }
  for (; n < states; ++n) f(std::integral_constant<int, 1>(), n);
}

template <typename T>
void forward_range(const Scan& s, int64_t sample, int64_t range) {
  struct Carried {  // of one vector of channels, from tile to tile
    Parameters p;
    std::vector<vec> h;
  };
  const int64_t first = range * s.vectors / s.ranges, last = (range + 1) * s.vectors / s.ranges;
  std::vector<Carried> carried;
  for (int64_t v = first; v < last; ++v) carried.push_back({Parameters(s, v), std::vector<vec>(s.states)});
  std::vector<float> B_tile(TILE * s.states), C_tile(TILE * s.states);
  TileInputs in;
  vec y_tile[TILE];
  for (int64_t tile = 0; tile < s.tiles; ++tile) {  // outside, so that rows of u and delta are read as they lie
    const int64_t start = tile * TILE;
    const int size = int(std::min<int64_t>(TILE, s.length - start));
    const TileQueries queries(s, start, size);
    read_states(s, rows<T>(s.B, s.B_strides, sample), start, size, B_tile.data());
    read_queries(s, rows<T>(s.C, s.C_strides, sample), queries, C_tile.data());
    for (int64_t v = first; v < last; ++v) {
      Carried& c = carried[v - first];
      if (s.starts != nullptr) {
        float* saved = s.starts + ((sample * s.tiles + tile) * s.vectors + v) * s.states * LANES;
        for (int64_t n = 0; n < s.states; ++n) store(saved + n * LANES, c.h[n]);
      }
      in.read<T>(s, sample, c.p, start, size);
      for (int q = 0; q < queries.count; ++q) y_tile[q] = c.p.D * in.u[queries.local[q]];
      for_groups(s.states, [&](auto size_of_group, int64_t n) {
        scan_states<size_of_group()>(in, size, queries, B_tile.data() + n, C_tile.data() + n, s.states, &c.p.A_log2[n],
                                     &c.h[n], y_tile);
      });
      for (int q = 0; q < queries.count; ++q)
        store_part(s.y + (sample * s.outputs + queries.output[q]) * s.channels + c.p.channel, y_tile[q], c.p.lanes);
    }
  }
}

// What one thread adds up over its channels, as vectors: lanes are summed at the end of a tile.
struct TileSums {
  std::vector<vec> dB, dC;  // [i][n], [q][n]
  explicit TileSums(const Scan& s) : dB(TILE * s.states), dC(TILE * s.states) {}
  void clear() {
    std::fill(dB.begin(), dB.end(), vec{});
    std::fill(dC.begin(), dC.end(), vec{});
  }
};

// Recomputes N states of a tile, then walks it backward. With g[i] the gradient of h[i] and e[i] = decay[i] g[i]:
//   g[i] = e[i + 1] + C dy     dC = dy h     dB = g step u     d(step u) = g B     d(step A) = e h[i - 1]
template <int N>
void backward_states(const TileInputs& in, int size, const TileQueries& queries, const float* B, const float* C,
                     int64_t states, const vec* A_log2, const float* h_start, vec* e_memory, const vec* dy, TileSums& sums,
                     int64_t n0, vec* dstep, vec* dstep_u, vec* dA) {
  static thread_local vec h[TILE + 1][N], decay[TILE][N];  // h[i]: before position i
  for (int n = 0; n < N; ++n) h[0][n] = load(h_start + n * LANES);
  for (int i = 0; i < size; ++i) {
    const vec step = in.step[i], step_u = in.step_u[i];
    const float* b = B + i * states;
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      decay[i][n] = exp2(step * A_log2[n]);
      h[i + 1][n] = decay[i][n] * h[i][n] + step_u * b[n];
    }
  }
  vec e[N], dA_sum[N];
  for (int n = 0; n < N; ++n) { e[n] = e_memory[n]; dA_sum[n] = dA[n]; }
  int q = queries.count - 1;
  for (int i = size - 1; i >= 0; --i) {
    const float* b = B + i * states;
    const vec step = in.step[i], step_u = in.step_u[i];
    vec* dB = &sums.dB[i * states + n0];
    if (q >= 0 && queries.local[q] == i) {
      const float* c = C + q * states;
      vec* dC = &sums.dC[q * states + n0];
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) {
        dC[n] += dy[q] * h[i + 1][n];
        e[n] += dy[q] * c[n];
      }
      --q;
    }
    vec by_u = {}, by_step = {};
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {  // e[n] is g here
      dB[n] += e[n] * step_u;
      by_u += e[n] * b[n];
      e[n] *= decay[i][n];
      const vec d_exponent = e[n] * h[i][n];
      by_step += d_exponent * A_log2[n];
      dA_sum[n] += d_exponent * step;
    }
    dstep_u[i] += by_u;
    dstep[i] += by_step * (1.0f / LOG2_E);
  }
  for (int n = 0; n < N; ++n) { e_memory[n] = e[n]; dA[n] = dA_sum[n]; }
}

template <typename T>
void backward_range(const Scan& s, int64_t sample, int64_t range) {
  const int64_t first = range * s.vectors / s.ranges, last = (range + 1) * s.vectors / s.ranges;
  struct Carried {  // of one vector of channels, from tile to tile
    Parameters p;
    std::vector<vec> e, dA;
    vec dD = {}, dbias = {};
  };
  std::vector<Carried> carried;
  for (int64_t v = first; v < last; ++v)
    carried.push_back({Parameters(s, v), std::vector<vec>(s.states), std::vector<vec>(s.states)});
  TileSums sums(s);
  TileInputs in;
  std::vector<float> B_tile(TILE * s.states), C_tile(TILE * s.states);
  vec dy_tile[TILE], dstep[TILE], dstep_u[TILE];
  for (int64_t tile = s.tiles - 1; tile >= 0; --tile) {
    const int64_t start = tile * TILE;
    const int size = int(std::min<int64_t>(TILE, s.length - start));
    const TileQueries queries(s, start, size);
    read_states(s, rows<T>(s.B, s.B_strides, sample), start, size, B_tile.data());
    read_queries(s, rows<T>(s.C, s.C_strides, sample), queries, C_tile.data());
    sums.clear();
    for (int64_t v = first; v < last; ++v) {
      Carried& c = carried[v - first];
      const int64_t channel = c.p.channel;
      const int lanes = c.p.lanes;
      in.read<T>(s, sample, c.p, start, size);
      for (int i = 0; i < size; ++i) dstep[i] = dstep_u[i] = vec{};
      for (int q = 0; q < queries.count; ++q)
        dy_tile[q] = load_part(s.dy + (sample * s.outputs + queries.output[q]) * s.channels + channel, lanes);
      const float* h_start = s.starts + ((sample * s.tiles + tile) * s.vectors + v) * s.states * LANES;
      for_groups(s.states, [&](auto size_of_group, int64_t n) {
        backward_states<size_of_group()>(in, size, queries, B_tile.data() + n, C_tile.data() + n, s.states, &c.p.A_log2[n],
                                         h_start + n * LANES, &c.e[n], dy_tile, sums, n, dstep, dstep_u, &c.dA[n]);
      });
      for (int i = 0, q = 0; i < size; ++i) {
        vec du = dstep_u[i] * in.step[i];
        vec ddelta = dstep[i] + dstep_u[i] * in.u[i];
        if (s.softplus) ddelta *= logistic(in.delta[i]);
        if (q < queries.count && queries.local[q] == i) {
          du += c.p.D * dy_tile[q];
          c.dD += in.u[i] * dy_tile[q++];
        }
        c.dbias += ddelta;
        const int64_t at = (sample * s.length + s.token(start + i)) * s.channels + channel;
        store_part(s.du + at, du, lanes);
        store_part(s.ddelta + at, ddelta, lanes);
      }
    }
    for (int i = 0; i < size; ++i) {
      float* dB = s.dB + ((range * s.batch + sample) * s.length + s.token(start + i)) * s.states;
      for (int64_t n = 0; n < s.states; ++n) dB[n] = sum(sums.dB[i * s.states + n]);
    }
    for (int q = 0; q < queries.count; ++q) {
      float* dC = s.dC + ((range * s.batch + sample) * s.outputs + queries.output[q]) * s.states;
      for (int64_t n = 0; n < s.states; ++n) dC[n] = sum(sums.dC[q * s.states + n]);
    }
  }
  for (int64_t v = first; v < last; ++v) {
    const Carried& c = carried[v - first];
    const int64_t channel = c.p.channel;
    const int lanes = c.p.lanes;
    for (int64_t n = 0; n < s.states; ++n) store_part(s.dA + (sample * s.states + n) * s.channels + channel, c.dA[n], lanes);
    store_part(s.dD + sample * s.channels + channel, c.dD, lanes);
    store_part(s.dbias + sample * s.channels + channel, c.dbias, lanes);
  }
}

// f(0), ..., f(count - 1) on as many threads as asked for: torch's own, where its OpenMP is at hand. Threads beside
// torch's would share the cores with those, which keep spinning for a while after each of its operations.
template <typename F>
void parallel(int64_t count, int64_t threads, F&& f) {
#if defined(_OPENMP)
#pragma omp parallel for schedule(static) num_threads(int(threads)) if (threads > 1 && count > 1)
  for (int64_t i = 0; i < count; ++i) f(i);
#else
  threads = std::min(threads, count);
  auto work = [&](int64_t thread) {
    for (int64_t i = thread * count / threads; i < (thread + 1) * count / threads; ++i) f(i);
  };
  std::vector<std::thread> others;
  for (int64_t t = 1; t < threads; ++t) others.emplace_back(work, t);
  if (count > 0) work(0);
  for (std::thread& other : others) other.join();
#endif
}

}  // namespace

extern "C" void bimba_scan_forward(const Arguments* arguments) {
  const Scan s(*arguments);
  auto run = s.bfloat16 ? forward_range<uint16_t> : forward_range<float>;
  parallel(s.batch * s.ranges, s.threads, [&](int64_t i) { run(s, i / s.ranges, i % s.ranges); });
}

extern "C" void bimba_scan_backward(const Arguments* arguments) {
  const Scan s(*arguments);
  auto run = s.bfloat16 ? backward_range<uint16_t> : backward_range<float>;
  parallel(s.batch * s.ranges, s.threads, [&](int64_t i) { run(s, i / s.ranges, i % s.ranges); });
}
