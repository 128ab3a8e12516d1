// How much of the processor's instruction set is used: what it has, and no more than the environment allows.
//
// FT_CPU=portable|avx2|avx512|avx512_bf16|amx stands for a lesser processor: our own code keeps to it, and the variables
// of ATen, oneDNN and MKL that say the same are set before any of them is read, unless they allow even less. Our own code
// heeds the least of them all.
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

struct Level {
  const char *name, *aten, *onednn, *mkl;
};

// In order; the place of a level is its number. A null variable is not set: nothing is kept back.
const Level kLevels[] = {
    {"portable", "default", "SSE41", "SSE4_2"},
    {"avx2", "avx2", "AVX2", "AVX2"},
    {"avx512", "avx512", "AVX512_CORE", "AVX512"},
    {"avx512_bf16", "avx512", "AVX512_CORE_BF16", "AVX512"},
    {"amx", nullptr, nullptr, nullptr},
};
constexpr int kMost = sizeof kLevels / sizeof *kLevels - 1;

// The number of the level that FT_CPU names; kMost where it is not set, -1 where it names none.
int asked() {
  const char* name = getenv("FT_CPU");
  if (!name || !*name) return kMost;
  for (int i = 0; i <= kMost; i++)
    if (!strcasecmp(name, kLevels[i].name)) return i;
  return -1;
}

// The highest level that a variable of another library leaves; kMost where it is not set or not known here.
int left_by(const char* variable, const char* Level::*value) {
  const char* text = getenv(variable);
  int level = kMost;
  for (int i = kMost; text && i >= 0; i--)
    if (kLevels[i].*value && !strcasecmp(text, kLevels[i].*value)) {
      level = i >= 2 && value != &Level::onednn ? kMost : i;  // AVX-512 is the most that ATen and MKL are told apart by
      break;
    }
  // Levels of oneDNN between ours.
  if (text && !strcmp(variable, "ONEDNN_MAX_CPU_ISA")) {
    if (!strcasecmp(text, "AVX")) level = 0;
    if (!strncasecmp(text, "AVX2_VNNI", 9)) level = 1;
    if (!strcasecmp(text, "AVX512_CORE_VNNI")) level = 2;
    if (!strcasecmp(text, "AVX512_CORE_FP16") || !strcasecmp(text, "AVX10_1_512")) level = 3;
  }
  return level;
}

int has() {
#ifdef __x86_64__
  __builtin_cpu_init();
  auto supports_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (!supports_avx2) return 0;
  bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!wide) return 1;
  if (!__builtin_cpu_supports("avx512bf16")) return 2;
  if (!__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("amx-bf16")) return 3;
  // The registers of AMX are a process's own wish: ARCH_REQ_XCOMP_PERM of XTILEDATA.
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0 ? 4 : 3;
#else
  return 0;
#endif
}

int least(int a, int b) { return a < b ? a : b; }

// Runs before main, so that programs and tests alike are limited before a library looks.
__attribute__((constructor)) void limit_libraries() {
  int level = asked();
  if (level < 0 || level == kMost) return;
  // A variable that allows less stays; one that allows more may come from a process that was limited less.
  auto limit = [level](const char* variable, const char* Level::*value) {
    if (left_by(variable, value) > level) setenv(variable, kLevels[level].*value, 1);
  };
  limit("ATEN_CPU_CAPABILITY", &Level::aten);
  limit("ONEDNN_MAX_CPU_ISA", &Level::onednn);
  limit("MKL_ENABLE_INSTRUCTIONS", &Level::mkl);
}

}  // namespace

extern "C" {
// The highest level that may be used, whatever the processor has: 0 portable, 1 AVX2, 2 AVX-512, 3 AVX-512 with bf16, 4 AMX;
// -1 where FT_CPU names none of them.
int ft_isa_allowed() {
  static const int level = [] {
    int own = asked();
    if (own < 0) return own;
    own = least(own, left_by("ATEN_CPU_CAPABILITY", &Level::aten));
    own = least(own, left_by("ONEDNN_MAX_CPU_ISA", &Level::onednn));
    own = least(own, left_by("DNNL_MAX_CPU_ISA", &Level::onednn));
    return least(own, left_by("MKL_ENABLE_INSTRUCTIONS", &Level::mkl));
  }();
  return level;
}

// The level in use: what the processor has and the environment allows.
int ft_isa() {
  static const int level = least(has(), ft_isa_allowed() < 0 ? kMost : ft_isa_allowed());
  return level;
}
}
