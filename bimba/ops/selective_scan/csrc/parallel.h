// f(0), ..., f(count - 1) on as many threads as asked for: torch's own, where its OpenMP is at hand. Threads beside
// torch's would share the cores with those, which keep spinning for a while after each of its operations.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

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
