/* The settings of the fake device, read by the stand-ins for libtorch_cuda.so (C++) and libcuda.so.1 (C). */
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Returns the number in an environment variable, or `otherwise` if it is unset or empty. */
static inline long long fake_number(const char* name, long long otherwise) {
  const char* text = getenv(name);
  return text && *text ? strtoll(text, NULL, 10) : otherwise;
}

/* Bytes of memory of each device. */
static inline long long fake_memory_bytes(void) { return fake_number("FAKE_CUDA_MEMORY", 8LL << 30); }

/* The allocation, counted on each device from 1, from which on memory is full, as if another program had taken the
   rest; 0: none. */
static inline long long fake_failing_allocation(void) { return fake_number("FAKE_CUDA_FULL_AT", 0); }

/* Compute capability of each device, e.g. 90 for 9.0. */
static inline int fake_capability(void) { return (int)fake_number("FAKE_CUDA_CAPABILITY", 90); }

/* Bytes of the buffer that each thread gets for its products, as libtorch reads the variable of cuBLAS: pairs
   :SIZE:COUNT, sizes in KiB. Without it, libtorch's own choice for the device. */
static inline long long fake_product_buffer(void) {
  const char* at = getenv("CUBLAS_WORKSPACE_CONFIG");
  long long size, count, sum = 0;
  if (!at) return fake_capability() >= 90 ? 4096LL * 1024 * 8 : 4096LL * 1024 * 2 + 16 * 1024 * 8;
  for (int length; sscanf(at, ":%lld:%lld%n", &size, &count, &length) == 2; at += length) sum += size * 1024 * count;
  return sum;
}

/* Number of devices that the process may use. As CUDA does, CUDA_VISIBLE_DEVICES hides the devices that it does not
   name; the list ends at the first entry that is not a device. */
static inline int fake_device_count(void) {
  int all = (int)fake_number("FAKE_CUDA_DEVICES", 2), visible = 0;
  const char* at = getenv("CUDA_VISIBLE_DEVICES");
  if (!at) return all;
  while (*at) {
    char* end;
    long device = strtol(at, &end, 10);
    if (end == at || device < 0 || device >= all) break;
    visible++;
    if (*end != ',') break;
    at = end + 1;
  }
  return visible;
}
