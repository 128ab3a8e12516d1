// Stands in for the parts of libcuda.so.1 and libnvrtc.so.13 by which ft runs its own kernels: "compiled" kernels are those of
// kernels.cpp, and a launch runs them at once. Device pointers are those of the fake device if it is loaded, otherwise of the host.
#include "emulation.h"

#include <dlfcn.h>
#include <cstdio>
#include <cstring>
#include <string>

namespace {
enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500 };
enum { NVRTC_INVALID_INPUT = 3, NVRTC_COMPILATION = 6 };

const char kMark[] = "kernels for the fake CUDA device, FT_NUMBER=";
const int kCapabilities[] = {75, 80, 86, 89, 90, 100};

char contexts[64];  // of the devices
thread_local char* current_context = nullptr;
thread_local char* contexts_below[8];
thread_local int depth = 0;

// Looks up a function of the fake device.
template <class F> F* of_device(const char* name) { return reinterpret_cast<F*>(dlsym(RTLD_DEFAULT, name)); }

struct Program { std::string image, log; };

// Returns the value of an option such as -DNAME=VALUE, or "" if it is missing.
std::string option(int count, const char* const* options, const char* name) {
  for (int i = 0; i < count; i++)
    if (std::strncmp(options[i], name, std::strlen(name)) == 0) return options[i] + std::strlen(name);
  return "";
}
}  // namespace

void* fake::bytes_of(const void* address) {
  static auto* host = of_device<void*(void*)>("fake_cuda_host");
  return host && address ? host(const_cast<void*>(address)) : const_cast<void*>(address);
}

extern "C" {
// ---- the driver
int cuDeviceGet(int* device, int number) { *device = number; return SUCCESS; }
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = &contexts[device]; return SUCCESS; }
int cuCtxGetCurrent(void** context) { *context = current_context; return SUCCESS; }
int cuCtxPushCurrent_v2(void* context) {
  if (!context || depth == 8) return INVALID_CONTEXT;
  contexts_below[depth++] = current_context;
  current_context = static_cast<char*>(context);
  return SUCCESS;
}
int cuCtxPopCurrent_v2(void** context) {
  if (depth == 0) return INVALID_CONTEXT;
  *context = current_context;
  current_context = contexts_below[--depth];
  return SUCCESS;
}
int cuGetErrorString(int code, const char** text) {
  *text = code == INVALID_IMAGE ? "device kernel image is invalid" : code == NOT_FOUND ? "named symbol not found" : "fake CUDA error";
  return SUCCESS;
}
int cuModuleLoadData(void** module, const void* image) {
  if (!current_context) return INVALID_CONTEXT;
  const fake::Kernel* tables[] = {fake_kernels_0, fake_kernels_1, fake_kernels_2};
  const char* text = static_cast<const char*>(image);
  if (std::strncmp(text, kMark, sizeof kMark - 1) != 0) return INVALID_IMAGE;
  const int number = text[sizeof kMark - 1] - '0';
  if (number < 0 || number > 2) return INVALID_IMAGE;
  *module = const_cast<fake::Kernel*>(tables[number]);
  return SUCCESS;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  for (auto* kernel = static_cast<fake::Kernel*>(module); kernel->name; kernel++)
    if (std::strcmp(kernel->name, name) == 0) { *function = kernel; return SUCCESS; }
  return NOT_FOUND;
}
int cuLaunchKernel(void* function, unsigned blocks, unsigned blocks_y, unsigned blocks_z, unsigned threads, unsigned threads_y,
                   unsigned threads_z, unsigned shared, void*, void** arguments, void**) {
  auto* kernel = static_cast<fake::Kernel*>(function);
  if (!current_context) return INVALID_CONTEXT;
  if (blocks == 0 || blocks_y != 1 || blocks_z != 1 || threads_y != 1 || threads_z != 1 || shared != 0) return INVALID_VALUE;
  if (threads != unsigned(kernel->threads)) return INVALID_VALUE;
  static auto* begin = of_device<void(const char*, int)>("fake_cuda_launch");
  if (begin) begin((std::string("ft::") + kernel->name).c_str(), int(current_context - contexts));
  // Every second launch of a thread runs in reverse, so that a test that repeats one finds results that depend on the order.
  static thread_local bool reversed = false;
  reversed = !reversed;
  const auto work = kernel->bind(arguments, blocks, reversed);
  work();
  static auto* capture = of_device<void(const std::function<void()>&)>("fake_cuda_capture");
  if (capture) capture(work);
  return SUCCESS;
}

// ---- NVRTC
int nvrtcVersion(int* major, int* minor) { *major = 0; *minor = 0; return SUCCESS; }
int nvrtcGetNumSupportedArchs(int* count) { *count = sizeof kCapabilities / sizeof *kCapabilities; return SUCCESS; }
int nvrtcGetSupportedArchs(int* archs) { std::memcpy(archs, kCapabilities, sizeof kCapabilities); return SUCCESS; }
int nvrtcCreateProgram(void** program, const char* source, const char*, int, const char* const*, const char* const*) {
  if (!std::strstr(source, "FT_KERNEL")) return NVRTC_INVALID_INPUT;
  *program = new Program();
  return SUCCESS;
}
int nvrtcCompileProgram(void* program, int count, const char* const* options) {
  auto& p = *static_cast<Program*>(program);
  const std::string number = option(count, options, "-DFT_NUMBER="), arch = option(count, options, "--gpu-architecture=");
  if (number.size() != 1 || number[0] < '0' || number[0] > '2' || arch.empty()) {
    p.log = "options without -DFT_NUMBER or --gpu-architecture";
    return NVRTC_COMPILATION;
  }
  p.image = kMark + number + " " + arch;
  return SUCCESS;
}
int nvrtcGetProgramLogSize(void* program, size_t* size) { *size = static_cast<Program*>(program)->log.size() + 1; return SUCCESS; }
int nvrtcGetProgramLog(void* program, char* log) { std::strcpy(log, static_cast<Program*>(program)->log.c_str()); return SUCCESS; }
int nvrtcGetCUBINSize(void* program, size_t* size) { *size = static_cast<Program*>(program)->image.size() + 1; return SUCCESS; }
int nvrtcGetCUBIN(void* program, char* image) { std::strcpy(image, static_cast<Program*>(program)->image.c_str()); return SUCCESS; }
int nvrtcGetPTXSize(void* program, size_t* size) { return nvrtcGetCUBINSize(program, size); }
int nvrtcGetPTX(void* program, char* image) { return nvrtcGetCUBIN(program, image); }
int nvrtcDestroyProgram(void** program) { delete static_cast<Program*>(*program); *program = nullptr; return SUCCESS; }
}
