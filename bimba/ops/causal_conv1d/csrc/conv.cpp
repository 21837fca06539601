// The causal depthwise convolution of one or two directions on a CPU, forward and backward.
//
// A thread takes tiles of 64 tokens of one sample and walks through their channels, sixteen (one vector) at a time. The
// vector's tokens are read once, as float32, together with the `reach` (W - 1) tokens on either side of the tile: there
// lie the taps of both directions. The anti-causal direction is the causal one with its taps in the opposite order, on
// a window that starts `reach` tokens later, so one loop serves both. The backward pass recomputes the sums before the
// activation, those of `reach` tokens beyond the tile included, whose gradients belong to tokens of the tile as well.

// Plain C at the border, and no header of torch: it compiles in seconds and fits any version of torch.

#include <algorithm>
#include <vector>

#include "../../selective_scan/csrc/parallel.h"
#include "../../selective_scan/csrc/vec.h"

// What Python hands over (ctypes mirrors it in cpp.py). x, y, dy and dx are all float32 or all bfloat16; the rest is
// float32 and contiguous. Null where not given.
struct Arguments {
  int64_t directions, batch, length, channels, width, threads, parts;
  int64_t silu, reverse, bfloat16;
  int64_t x_strides[2];  // of samples and tokens; its last axis is contiguous
  const void* x;         // (B, L, D)
  const float* weight;   // (R, W, D)
  const float* bias;     // (R, D)
  void* y;               // (R, B, L, D)
  const void* dy;        // (R, B, L, D)
  void* dx;              // (B, L, D)
  float* sums;           // (parts, R, W + 1, D), zeros: of dweight and, last, of dbias
};

static inline void store_part(uint16_t* p, vec x, int lanes) {  // to the nearest bfloat16, ties to the even one
  const uvec bits = (uvec)x;
  uvec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  rounded = x == x ? rounded : (uvec{} + 0x7fc0u);
  const half_vec half = __builtin_convertvector(rounded, half_vec);
  std::memcpy(p, &half, lanes * sizeof(uint16_t));
}

namespace {

constexpr int TILE = 64;

// 1 / (1 + exp(-x))
static inline vec sigmoid(vec x) {
  return 1.0f / (1.0f + exp2(x * -LOG2_E));
}

struct Conv : Arguments {
  int64_t reach, tiles, vectors;

  explicit Conv(const Arguments& a)
      : Arguments(a), reach(width - 1), tiles((length + TILE - 1) / TILE), vectors((channels + LANES - 1) / LANES) {}
  bool is_reverse(int64_t direction) const { return (reverse != 0) != (direction == 1); }
};

// Asks for the next vector of the same token: a tile's rows lie too far apart for the processor to foresee it.
template <typename T>
inline void expect_next(const T* p) { __builtin_prefetch(p + LANES); }
template <typename T>
inline void expect_next_store(T* p) { __builtin_prefetch(p + LANES, 1); }

// One tile of one vector of channels. WIDTH: the number of taps if it is known to the compiler, else 0.
template <typename T, int WIDTH>
struct Tile {
  const Conv& s;
  const int width, reach;
  int64_t sample, start, channel;
  int size, lanes;
  std::vector<vec> window;  // tokens [start - reach, start + size + reach), zeros outside the sequence
  std::vector<vec> dpre;    // of one direction: `size + reach` tokens
  std::vector<vec> dx;      // `size` tokens, summed over the directions
  std::vector<vec> taps, dtaps;

  explicit Tile(const Conv& s)
      : s(s), width(WIDTH ? WIDTH : int(s.width)), reach(width - 1), window(TILE + 2 * reach), dpre(TILE + reach),
        dx(TILE), taps(width), dtaps(width) {}

  void move_to(int64_t new_sample, int64_t tile) {
    sample = new_sample;
    start = tile * TILE;
    size = int(std::min<int64_t>(TILE, s.length - start));
  }

  void read_window(int64_t vector) {
    channel = vector * LANES;
    lanes = int(std::min<int64_t>(LANES, s.channels - channel));
    const T* x = static_cast<const T*>(s.x) + sample * s.x_strides[0] + channel;
    for (int i = 0; i < size + 2 * reach; ++i) {
      const int64_t t = start - reach + i;
      if (t < 0 || t >= s.length) { window[i] = vec{}; continue; }
      const T* row = x + t * s.x_strides[1];
      expect_next(row);
      window[i] = load_part(row, lanes);
    }
  }

  // In the order of the tokens that they meet.
  void read_taps(int64_t direction) {
    for (int j = 0; j < width; ++j) {
      const int w = s.is_reverse(direction) ? reach - j : j;
      taps[j] = load_part(s.weight + (direction * width + w) * s.channels + channel, lanes);
    }
  }

  vec bias(int64_t direction) const {
    return s.bias != nullptr ? load_part(s.bias + direction * s.channels + channel, lanes) : vec{};
  }

  int64_t offset(int64_t direction, int64_t token) const {  // in y and dy
    return ((direction * s.batch + sample) * s.length + token) * s.channels + channel;
  }

  vec sum_taps(const vec* k, vec total, const vec* source) const {
#pragma GCC unroll 4
    for (int j = 0; j < width; ++j) total += k[j] * source[j];
    return total;
  }

  void forward(int64_t direction) {
    read_taps(direction);
    vec k_known[WIDTH ? WIDTH : 1];  // in registers, if the compiler knows their number
    for (int j = 0; j < WIDTH; ++j) k_known[j] = taps[j];
    const vec* k = WIDTH ? k_known : taps.data();
    const vec b = bias(direction);
    const vec* source = window.data() + (s.is_reverse(direction) ? reach : 0);
    T* y = static_cast<T*>(s.y) + offset(direction, start);
    for (int i = 0; i < size; ++i, y += s.channels) {
      const vec pre = sum_taps(k, b, source + i);
      expect_next_store(y);
      store_part(y, s.silu ? pre * sigmoid(pre) : pre, lanes);
    }
  }

  // Adds to dx, and to this thread's sums of dweight and dbias.
  void backward(int64_t direction, float* sums) {
    const bool anti = s.is_reverse(direction);
    read_taps(direction);
    vec k_known[WIDTH ? WIDTH : 1], dk_known[WIDTH ? WIDTH : 1];
    for (int j = 0; j < WIDTH; ++j) { k_known[j] = taps[j]; dk_known[j] = vec{}; }
    const vec* k = WIDTH ? k_known : taps.data();
    vec* dk = WIDTH ? dk_known : dtaps.data();
    for (int j = 0; j < width; ++j) dk[j] = vec{};
    const vec b = bias(direction);
    vec dbias = {};
    const int64_t first = start - (anti ? reach : 0);  // the token of dpre[0]
    const T* dy = static_cast<const T*>(s.dy) + offset(direction, 0);
    for (int i = 0; i < size + reach; ++i) {
      const int64_t t = first + i;
      if (t < 0 || t >= s.length) { dpre[i] = vec{}; continue; }
      const vec* source = window.data() + i;
      expect_next(dy + t * s.channels);
      vec g = load_part(dy + t * s.channels, lanes);
      if (s.silu) {
        const vec pre = sum_taps(k, b, source), gate = sigmoid(pre);
        g *= gate * (1.0f + pre * (1.0f - gate));
      }
      dpre[i] = g;
      if (t < start || t >= start + size) continue;  // of another tile: it only reaches into this one
#pragma GCC unroll 4
      for (int j = 0; j < width; ++j) dk[j] += g * source[j];
      dbias += g;
    }
    for (int i = 0; i < size; ++i) {
      vec total = dx[i];
#pragma GCC unroll 4
      for (int j = 0; j < width; ++j) total += k[reach - j] * dpre[i + j];
      dx[i] = total;
    }
    sums += direction * (width + 1) * s.channels + channel;
    for (int j = 0; j < width; ++j) add(sums + (anti ? reach - j : j) * s.channels, dk[j]);
    add(sums + width * s.channels, dbias);
  }

  void add(float* p, vec x) const { store_part(p, load_part(p, lanes) + x, lanes); }

  void store_dx() {
    T* p = static_cast<T*>(s.dx) + (sample * s.length + start) * s.channels + channel;
    for (int i = 0; i < size; ++i, p += s.channels) {
      expect_next_store(p);
      store_part(p, dx[i], lanes);
    }
  }
};

// Calls f(tile) for the tiles of one of `parts` equal shares of all samples' tiles.
template <typename T, int WIDTH, typename F>
void for_tiles(const Conv& s, int64_t part, F&& f) {
  Tile<T, WIDTH> tile(s);
  const int64_t count = s.batch * s.tiles;
  for (int64_t i = part * count / s.parts; i < (part + 1) * count / s.parts; ++i) {
    tile.move_to(i / s.tiles, i % s.tiles);
    f(tile);
  }
}

template <typename T, int WIDTH>
void forward_part(const Conv& s, int64_t part) {
  for_tiles<T, WIDTH>(s, part, [&](Tile<T, WIDTH>& tile) {
    for (int64_t v = 0; v < s.vectors; ++v) {
      tile.read_window(v);
      for (int64_t r = 0; r < s.directions; ++r) tile.forward(r);
    }
  });
}

template <typename T, int WIDTH>
void backward_part(const Conv& s, int64_t part) {
  float* sums = s.sums + part * s.directions * (s.width + 1) * s.channels;
  for_tiles<T, WIDTH>(s, part, [&](Tile<T, WIDTH>& tile) {
    for (int64_t v = 0; v < s.vectors; ++v) {
      tile.read_window(v);
      std::fill(tile.dx.begin(), tile.dx.end(), vec{});
      for (int64_t r = 0; r < s.directions; ++r) tile.backward(r, sums);
      tile.store_dx();
    }
  });
}

}  // namespace

extern "C" void bimba_conv_forward(const Arguments* arguments) {
  const Conv s(*arguments);
  auto run = s.width == 4 ? (s.bfloat16 ? forward_part<uint16_t, 4> : forward_part<float, 4>)
                          : (s.bfloat16 ? forward_part<uint16_t, 0> : forward_part<float, 0>);
  parallel(s.parts, s.threads, [&](int64_t part) { run(s, part); });
}

extern "C" void bimba_conv_backward(const Arguments* arguments) {
  const Conv s(*arguments);
  auto run = s.width == 4 ? (s.bfloat16 ? backward_part<uint16_t, 4> : backward_part<float, 4>)
                          : (s.bfloat16 ? backward_part<uint16_t, 0> : backward_part<float, 0>);
  parallel(s.parts, s.threads, [&](int64_t part) { run(s, part); });
}
