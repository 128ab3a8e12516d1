// Decides which instruction set is used: the processor's, unless the environment restricts it.
//
// FT_CPU=portable|avx2|avx512|avx512_bf16|amx makes the program behave as on a smaller processor. Our own code obeys
// it, and the corresponding variables of ATen, oneDNN and MKL are set before those libraries read them, unless they
// are already set to something smaller. Our own code also obeys these variables: it uses the smallest instruction set
// of all.
#include "isa.h"

#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

struct Level {
  const char *name, *aten, *onednn, *mkl;
};

// A level's number is its index.
#define FT_LEVEL(name, bytes, flags, aten, onednn, mkl) {#name, aten, onednn, mkl},
const Level kLevels[] = {FT_ALL_LEVELS(FT_LEVEL)};
constexpr int kMost = kLevelCount - 1;

// Returns the number of the level in FT_CPU; kMost if it is not set, -1 if it is not a level.
int asked() {
  const char* name = getenv("FT_CPU");
  if (!name || !*name) return kMost;
  for (int i = 0; i <= kMost; i++)
    if (!strcasecmp(name, kLevels[i].name)) return i;
  return -1;
}

// Returns the highest level that another library's variable allows; kMost if it is not set or has an unknown value.
int left_by(const char* variable, const char* Level::*value) {
  const char* text = getenv(variable);
  int level = kMost;
  for (int i = kMost; text && i >= 0; i--)
    if (kLevels[i].*value && !strcasecmp(text, kLevels[i].*value)) {
      level = i >= kLevel_avx512 && value != &Level::onednn ? kMost : i;  // ATen and MKL distinguish no levels above AVX-512
      break;
    }
  // Levels of oneDNN that are between ours.
  if (text && !strcmp(variable, "ONEDNN_MAX_CPU_ISA")) {
    if (!strcasecmp(text, "AVX")) level = kLevel_portable;
    if (!strncasecmp(text, "AVX2_VNNI", 9)) level = kLevel_avx2;
    if (!strcasecmp(text, "AVX512_CORE_VNNI")) level = kLevel_avx512;
    if (!strcasecmp(text, "AVX512_CORE_FP16") || !strcasecmp(text, "AVX10_1_512")) level = kLevel_avx512_bf16;
  }
  return level;
}

int has() {
#ifdef __x86_64__
  __builtin_cpu_init();
  auto supports_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (!supports_avx2) return kLevel_portable;
  bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!wide) return kLevel_avx2;
  if (!__builtin_cpu_supports("avx512bf16")) return kLevel_avx512;
  if (!__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("amx-bf16")) return kLevel_avx512_bf16;
  // A process must request the registers of AMX: ARCH_REQ_XCOMP_PERM of XTILEDATA.
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0 ? kLevel_amx : kLevel_avx512_bf16;
#else
  return kLevel_portable;
#endif
}

int least(int a, int b) { return a < b ? a : b; }

// Runs before main, so that the variables are set before any library reads them, in programs and in tests.
__attribute__((constructor)) void limit_libraries() {
  int level = asked();
  if (level < 0 || level == kMost) return;
  // A variable that is more restrictive stays. A less restrictive one is replaced: it may be inherited from a process
  // with another FT_CPU.
  auto limit = [level](const char* variable, const char* Level::*value) {
    if (left_by(variable, value) > level) setenv(variable, kLevels[level].*value, 1);
  };
  limit("ATEN_CPU_CAPABILITY", &Level::aten);
  limit("ONEDNN_MAX_CPU_ISA", &Level::onednn);
  limit("MKL_ENABLE_INSTRUCTIONS", &Level::mkl);
}

}  // namespace

extern "C" {
// Returns the highest level (FtLevel) that the environment allows, whatever the processor has; -1 if FT_CPU is none of
// them.
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

// Returns the name of a level in FT_CPU; null if there is no such level.
const char* ft_isa_name(int level) { return level >= 0 && level <= kMost ? kLevels[level].name : nullptr; }

// Returns the level in use: the highest one that the processor has and the environment allows.
int ft_isa() {
  static const int level = least(has(), ft_isa_allowed() < 0 ? kMost : ft_isa_allowed());
  return level;
}
}
