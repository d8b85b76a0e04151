// Distributes tasks to threads. The result of a task depends on its number only, so neither the number of threads nor
// the assignment of tasks can change a bit.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>

namespace u2pl_fast::cpu {

// Runs the function once on each of at most `limit` threads; the ops distribute their tasks themselves.
using Workers = std::function<void(int64_t limit, const std::function<void()>&)>;

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Scratch = std::unique_ptr<float, Free>;

inline Scratch make_scratch(size_t floats) {
  const size_t bytes = (floats * sizeof(float) + 127) / 64 * 64;
  Scratch scratch(static_cast<float*>(std::aligned_alloc(64, bytes)));
  if (!scratch) throw std::bad_alloc();
  return scratch;
}

// Calls body(task, scratch) for every task in 0 .. tasks-1; each thread has its own scratch.
template <typename Body>
void run_tasks(int64_t tasks, size_t scratch_floats, const Workers& workers, const Body& body) {
  std::atomic<int64_t> next{0};
  workers(tasks, [&] {
    const Scratch scratch = make_scratch(scratch_floats);
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(task, scratch.get());
  });
}

}  // namespace u2pl_fast::cpu
