// The kernels of native/cuda/ as functions of the CPU, between kernels.cpp and launches.cpp.
#pragma once
#include <functional>

namespace fake {
struct Kernel {
  const char* name;
  int threads;  // of a block
  // Returns work that runs all blocks. `arguments` points to the values, as for cuLaunchKernel, and is read at once; `reversed`:
  // threads and blocks in descending order.
  std::function<void()> (*bind)(void** arguments, long long blocks, bool reversed);
};

// Returns where the bytes of an address are that a kernel was given.
void* bytes_of(const void* address);
}  // namespace fake

// The kernels of each number format (FT_NUMBER), ended by one without a name.
extern "C" const fake::Kernel fake_kernels_0[], fake_kernels_1[], fake_kernels_2[];
