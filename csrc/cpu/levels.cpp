// Chooses the instruction-set level at run time, on the machine that runs it.
#include <atomic>
#include <stdexcept>

#include "levels.h"

namespace u2pl_fast::cpu {
namespace {

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(&kernels_avx512());
  }
  if (avx2) found.push_back(&kernels_avx2());
#endif
  found.push_back(&kernels_baseline());
  return found;
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> kernels{available().front()};
  return kernels;
}

}  // namespace

std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (const Kernels* k : available()) names.emplace_back(k->name);
  return names;
}

const Kernels& kernels() { return *current().load(); }
std::string level() { return kernels().name; }

void use_level(const std::string& name) {
  for (const Kernels* k : available()) {
    if (name == k->name) {
      current().store(k);
      return;
    }
  }
  throw std::invalid_argument("level: '" + name + "' does not run on this machine; choose one of cpu_levels()");
}

}  // namespace u2pl_fast::cpu
