// The selective scan on a CPU, forward and backward.
//
// A thread takes one row (a sample in one direction) and a range of channels, one vector of them at a time, and walks
// its sequence in tiles of 64 positions. What does not depend on the states (softplus, delta * u) is computed for a
// whole tile first; then the states of one group stay in registers from token to token, while the memory of the next
// tile is called for. Only queries are written. The forward pass keeps the state at the start of every tile; the
// backward pass recomputes a tile's states from it and walks the tile the other way.
//
// "Position" counts in the order of the scan: where a direction is reversed, position i is token L - 1 - i.

// Plain C at the border, and no header of torch: it compiles in seconds and fits any version of torch.

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "parallel.h"
#include "tile.h"
#include "vec.h"

namespace {

// States that are scanned together. Forward they, their A and what their decay takes fit the registers.
constexpr int FORWARD_GROUP = 8, BACKWARD_GROUP = 16;

// Scans N states of a tile; y[q] += sum_n C h at the queries. What else there is to do is done token by token with it:
// meanwhile(i).
template <int N, bool BOUNDED, typename F>
void scan_states(const TileInputs& in, int size, const TileQueries& queries, const float* B, const float* C,
                 int64_t states, const vec* A_log2, vec* h_memory, vec* y, F meanwhile) {
  vec h[N];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) h[n] = h_memory[n];
  int q = 0;
  for (int i = 0; i < size; ++i) {
    const vec step = in.step[i], step_u = in.step_u[i];
    const float* b = B + i * states;
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) h[n] = decay_of<BOUNDED>(step, A_log2[n]) * h[n] + step_u * b[n];
    meanwhile(i);
    if (queries.local[q] == i) {
      const float* c = C + q * states;
      vec even = y[q], odd = {};
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) (n % 2 ? odd : even) += h[n] * c[n];
      y[q++] = even + odd;
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) h_memory[n] = h[n];
}

template <typename T>
void forward_range(const Scan& s, int64_t range) {
  struct Carried {  // of one vector of channels, from tile to tile
    Parameters p;
    std::vector<vec> h;
  };
  const int64_t first = range * s.vectors / s.ranges, last = (range + 1) * s.vectors / s.ranges;
  std::vector<Carried> carried;
  for (int64_t v = first; v < last; ++v) {
    Parameters p(s, v);
    std::vector<vec> h = load_channels(of_row(s, s.initial_state), s.states, p.channel, p.lanes);
    carried.push_back({std::move(p), std::move(h)});
  }
  std::vector<float> B_tile(TILE * s.states), C_tile(TILE * s.states);
  TileInputs in;
  vec y_tile[TILE];
  for (int64_t tile = 0; tile < s.tiles; ++tile) {  // outside, so that rows of u and delta are read as they lie
    const int64_t start = tile * TILE;
    const int size = s.size_of_tile(start);
    const TileQueries queries(s, start, size);
    read_states(s, s.rows<T>(s.B, s.B_strides), start, size, B_tile.data());
    read_queries(s, s.rows<T>(s.C, s.C_strides), queries, C_tile.data());
    const int64_t next_start = start + TILE < s.length ? start + TILE : start;
    for (int64_t v = first; v < last; ++v) {
      Carried& c = carried[v - first];
      if (s.starts != nullptr) {
        float* saved = s.start_of(tile) + c.p.channel;
        for (int64_t n = 0; n < s.states; ++n) store_part(saved + n * s.channels, c.h[n], c.p.lanes);
      }
      const bool bounded = read_tile<T>(s, c.p, start, false, in);
      float* y = s.y + s.row * s.outputs * s.channels + c.p.channel;
      for (int q = 0; q < queries.count; ++q) {
        y_tile[q] = c.p.D * in.u[queries.local[q]];
        __builtin_prefetch(y + queries.output[q] * s.channels, 1);  // to be written
      }
      Prefetcher<T> prefetcher(s, next_start, first, last - first, v - first);
      for_groups<FORWARD_GROUP>(s.states, [&](auto group, int64_t n) {
        const auto call_ahead = [&](int) {
          if (n == 0) prefetcher();
        };
        const auto scan = [&](auto of_bounded) {
          scan_states<group(), of_bounded()>(in, size, queries, &B_tile[n], &C_tile[n], s.states, &c.p.A_log2[n],
                                              &c.h[n], y_tile, call_ahead);
        };
        if (bounded) scan(std::true_type());
        else scan(std::false_type());
      });
      for (int q = 0; q < queries.count; ++q)
        store_part(y + queries.output[q] * s.channels, y_tile[q], c.p.lanes);
    }
  }
  for (const Carried& c : carried) store_channels(of_row(s, s.last_state), c.h, c.p.channel, c.p.lanes);
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
// meanwhile(i): what else there is to do, token by token on the way there.
template <int N, bool BOUNDED, typename F>
void backward_states(const TileInputs& in, int size, const TileQueries& queries, const float* B, const float* C,
                     int64_t states, const vec* A_log2, const vec* h_start, vec* e_memory, const vec* dy,
                     TileSums& sums, int64_t n0, vec* dstep, vec* dstep_u, vec* dA, F meanwhile) {
  static thread_local vec h[TILE + 1][N], decay[TILE][N];  // h[i]: before position i
  for (int n = 0; n < N; ++n) h[0][n] = h_start[n];
  for (int i = 0; i < size; ++i) {
    const vec step = in.step[i], step_u = in.step_u[i];
    const float* b = B + i * states;
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      decay[i][n] = decay_of<BOUNDED>(step, A_log2[n]);
      h[i + 1][n] = decay[i][n] * h[i][n] + step_u * b[n];
    }
    meanwhile(i);
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
    vec by_u[2] = {}, by_step[2] = {};  // two of each, so that no sum waits for itself
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {  // e[n] is g here
      dB[n] += e[n] * step_u;
      by_u[n % 2] += e[n] * b[n];
      e[n] *= decay[i][n];
      const vec d_exponent = e[n] * h[i][n];
      by_step[n % 2] += d_exponent * A_log2[n];
      dA_sum[n] += d_exponent * step;
    }
    dstep_u[i] += by_u[0] + by_u[1];
    dstep[i] += (by_step[0] + by_step[1]) * (1.0f / LOG2_E);
  }
  for (int n = 0; n < N; ++n) { e_memory[n] = e[n]; dA[n] = dA_sum[n]; }
}

template <typename T>
void backward_range(const Scan& s, int64_t range) {
  const int64_t first = range * s.vectors / s.ranges, last = (range + 1) * s.vectors / s.ranges;
  struct Carried {  // of one vector of channels, from tile to tile
    Parameters p;
    std::vector<vec> e, dA;
    vec dD = {}, dbias = {};
  };
  std::vector<Carried> carried;
  for (int64_t v = first; v < last; ++v) {
    Parameters p(s, v);
    std::vector<vec> e = load_channels(of_row(s, s.dlast), s.states, p.channel, p.lanes);
    carried.push_back({std::move(p), std::move(e), std::vector<vec>(s.states)});
  }
  TileSums sums(s);
  std::vector<vec> h_start(s.states);
  TileInputs in;
  std::vector<float> B_tile(TILE * s.states), C_tile(TILE * s.states);
  vec dy_tile[TILE], dstep[TILE], dstep_u[TILE];
  for (int64_t tile = s.tiles - 1; tile >= 0; --tile) {
    const int64_t start = tile * TILE;
    const int size = s.size_of_tile(start);
    const TileQueries queries(s, start, size);
    read_states(s, s.rows<T>(s.B, s.B_strides), start, size, B_tile.data());
    read_queries(s, s.rows<T>(s.C, s.C_strides), queries, C_tile.data());
    sums.clear();
    const int64_t next_start = start >= TILE ? start - TILE : start;
    for (int64_t v = first; v < last; ++v) {
      Carried& c = carried[v - first];
      const int64_t channel = c.p.channel;
      const int lanes = c.p.lanes;
      const bool bounded = read_tile<T>(s, c.p, start, true, in);
      for (int i = 0; i < size; ++i) dstep[i] = dstep_u[i] = vec{};
      for (int q = 0; q < queries.count; ++q)
        dy_tile[q] = load_part(s.dy + (s.row * s.outputs + queries.output[q]) * s.channels + channel, lanes);
      const float* saved = s.start_of(tile) + channel;
      for (int64_t n = 0; n < s.states; ++n) h_start[n] = load_part(saved + n * s.channels, lanes);
      const GradientRows rows(s, start, channel);
      Prefetcher<T> prefetcher(s, next_start, first, last - first, v - first);
      for_groups<BACKWARD_GROUP>(s.states, [&](auto group, int64_t n) {
        const auto call_ahead = [&](int i) {
          if (n != 0) return;
          __builtin_prefetch(rows.du(i), 1);  // to be written: stores that miss would hold up all behind them
          __builtin_prefetch(rows.ddelta(i), 1);
          prefetcher();
        };
        const auto scan = [&](auto of_bounded) {
          backward_states<group(), of_bounded()>(in, size, queries, &B_tile[n], &C_tile[n], s.states, &c.p.A_log2[n],
                                                 &h_start[n], &c.e[n], dy_tile, sums, n, dstep, dstep_u, &c.dA[n],
                                                 call_ahead);
        };
        if (bounded) scan(std::true_type());
        else scan(std::false_type());
      });
      const auto finish = [&](auto lanes) {  // a constant, but for the last channels: else sums lie in memory
        vec dD = c.dD, dbias = c.dbias;
        for (int i = 0, q = 0; i < size; ++i) {
          vec du = dstep_u[i] * in.step[i];
          vec ddelta = dstep[i] + dstep_u[i] * in.u[i];
          if (s.softplus) ddelta *= logistic(in.delta[i]);
          if (queries.local[q] == i) {
            du += c.p.D * dy_tile[q];
            dD += in.u[i] * dy_tile[q++];
          }
          dbias += ddelta;
          store_part(rows.du(i), du, lanes);
          store_part(rows.ddelta(i), ddelta, lanes);
        }
        c.dD = dD;
        c.dbias = dbias;
      };
      if (lanes == LANES) finish(std::integral_constant<int, LANES>());
      else finish(lanes);
    }
    for (int i = 0; i < size; ++i) {
      float* dB = s.dB + ((range * s.directions * s.batch + s.row) * s.length + s.token(start + i)) * s.states;
      for (int64_t n = 0; n < s.states; ++n) dB[n] = sum(sums.dB[i * s.states + n]);
    }
    for (int q = 0; q < queries.count; ++q) {
      float* dC = s.dC + ((range * s.directions * s.batch + s.row) * s.outputs + queries.output[q]) * s.states;
      for (int64_t n = 0; n < s.states; ++n) dC[n] = sum(sums.dC[q * s.states + n]);
    }
  }
  for (const Carried& c : carried) {
    store_channels(of_row(s, s.dinitial), c.e, c.p.channel, c.p.lanes);
    store_channels(of_row(s, s.dA), c.dA, c.p.channel, c.p.lanes);
    store_part(s.dD + s.row * s.channels + c.p.channel, c.dD, c.p.lanes);
    store_part(s.dbias + s.row * s.channels + c.p.channel, c.dbias, c.p.lanes);
  }
}

}  // namespace

extern "C" void bimba_scan_forward(const Arguments* a) {
  auto run = a->bfloat16 ? forward_range<uint16_t> : forward_range<float>;
  parallel(a->directions * a->batch * a->ranges, a->threads,
           [&](int64_t i) { run(Scan(*a, i / a->ranges), i % a->ranges); });
}

extern "C" void bimba_scan_backward(const Arguments* a) {
  auto run = a->bfloat16 ? backward_range<uint16_t> : backward_range<float>;
  parallel(a->directions * a->batch * a->ranges, a->threads,
           [&](int64_t i) { run(Scan(*a, i / a->ranges), i % a->ranges); });
}
