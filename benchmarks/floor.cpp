// How long `count` exponentials take when nothing else is done: the floor under the scan.

#include <cstdint>

#include "../bimba/ops/selective_scan/csrc/vec.h"

static void exponentials(int64_t count) {
  vec x[8], total[8] = {};
  for (int i = 0; i < 8; ++i) x[i] = splat(-0.1f * float(i + 1));
  for (int64_t i = 0; i < count / (8 * LANES); ++i)
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) total[j] += exp2(x[j] += 1e-5f);  // an argument that changes, or it would be moved out
  volatile float kept = 0;
  for (int i = 0; i < 8; ++i) kept = kept + sum(total[i]);
}

extern "C" void bimba_exponentials(int64_t count, int64_t threads) {
#pragma omp parallel for num_threads(int(threads))
  for (int64_t t = 0; t < threads; ++t) exponentials(count / threads);
}
