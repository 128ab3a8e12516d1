/* Stands in for libcuda.so.1: answers what ft asks of NVIDIA's driver (src/machine.rs), from the same settings as the fake device. */
#include "environment.h"

enum { SUCCESS = 0, NO_DEVICE = 100, CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 };

int cuInit(unsigned flags) { return fake_device_count() ? SUCCESS : NO_DEVICE; }
int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = fake_device_count(); return SUCCESS; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Fake CUDA device", length); return SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = fake_memory_bytes(); return SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  int capability = fake_capability();
  *value = attribute == CAPABILITY_MAJOR ? capability / 10 : attribute == CAPABILITY_MINOR ? capability % 10 : 0;
  return SUCCESS;
}
