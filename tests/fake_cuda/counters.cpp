// Counts what costs time on a GPU: launches, waits of the host, copies and allocations. Tests in the process read the
// counts through the C functions at the end; a process with FAKE_CUDA_TRACE appends them to that file, as one line of
// JSON, when it ends.
#include "fake_cuda.h"

#include <elf.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <mutex>
#include <unistd.h>

// The layout is that of tests/it/support/fake_cuda.rs.
extern "C" struct fake_cuda_counts {
  int64_t launches, waits, uploads, upload_bytes, downloads, download_bytes, allocations;
};

namespace fake {
namespace {
using Counts = fake_cuda_counts;

std::string variable(const char* name) {
  const char* text = std::getenv(name);
  return text ? text : "";
}

void append(std::string& text, const Counts& c) {
  char one[400];
  std::snprintf(
      one, sizeof one,
      "{\"launches\":%ld,\"waits\":%ld,\"uploads\":%ld,\"upload_bytes\":%ld,\"downloads\":%ld,\"download_bytes\":%ld,"
      "\"allocations\":%ld}",
      c.launches, c.waits, c.uploads, c.upload_bytes, c.downloads, c.download_bytes, c.allocations);
  text += one;
}
void append(std::string& text, const std::map<std::string, int64_t>& counts) {
  text += "{";
  for (auto& [name, n] : counts) text += (text.back() == '{' ? "\"" : ",\"") + name + "\":" + std::to_string(n);
  text += "}";
}

struct Counters {
  std::mutex lock;
  Counts total{}, at_mark{};
  std::vector<Counts> marks;  // what came between two runs of the operation FAKE_CUDA_MARK
  std::map<std::string, int64_t> operations, waits, stacks;
  const std::string mark = variable("FAKE_CUDA_MARK"), trace = variable("FAKE_CUDA_TRACE");

  Counters() {
    if (!trace.empty()) std::atexit([] { get().write(); });
  }
  static Counters& get() {
    static auto* counters = new Counters();
    return *counters;
  }
  void set_mark() {
    const Counts &a = total, &b = at_mark;
    marks.push_back({a.launches - b.launches, a.waits - b.waits, a.uploads - b.uploads, a.upload_bytes - b.upload_bytes,
                     a.downloads - b.downloads, a.download_bytes - b.download_bytes, a.allocations - b.allocations});
    at_mark = total;
  }
  void write() {
    std::lock_guard<std::mutex> hold(lock);
    std::string text = "{\"total\":";
    append(text, total);
    text += ",\"marks\":[";
    for (auto& counts : marks) {
      if (text.back() != '[') text += ",";
      append(text, counts);
    }
    text += "],\"waits\":";
    append(text, waits);
    text += ",\"operations\":";
    append(text, operations);
    text += ",\"stacks\":";
    append(text, stacks);
    text += ",\"peak\":";
    append(text, held_at_peak());
    text += "}\n";
    FILE* file = std::fopen(trace.c_str(), "a");
    if (!file) {
      std::perror(trace.c_str());
      return;
    }
    std::fwrite(text.data(), 1, text.size(), file);
    std::fclose(file);
  }
};

// A process that loads the device but never uses it leaves a trace, too.
const Counters& at_load = Counters::get();

// ---- names of the program's functions

// Reads `s123_`, which tells entities of one name apart, if it is there.
const char* skip_disambiguator(const char* at) {
  const char* end = at + 1;
  while (std::isalnum(*end)) end++;
  return *at == 's' && *end == '_' ? end + 1 : at;
}
// Reads one identifier of a mangled name, `3run`, and moves `at` behind it; returns false if there is none.
bool read_identifier(const char*& at, std::string& name) {
  const char* digits = skip_disambiguator(at);
  if (!std::isdigit(*digits)) return false;
  char* text;
  const size_t length = *digits == '0' ? (text = const_cast<char*>(digits) + 1, 0) : std::strtoul(digits, &text, 10);
  if (*text == '_') text++;
  if (length > std::strlen(text)) return false;
  name.assign(text, length);
  at = text + length;
  return true;
}

// Returns the path of a function of ft or its tests by its mangled name (Rust's v0): `_RNvNtCs1a_2ft5train3run` is
// ft::train::run. A method is named after the module of its impl; type arguments are left out. Empty for other
// functions.
std::string own_path(const char* mangled) {
  if (std::strncmp(mangled, "_R", 2) != 0) return "";
  const char* at = mangled + 2;
  bool method = false;
  for (; *at != 'C';) {
    if (*at == 'N' && at[1])
      at += 2;  // a namespace
    else if (*at == 'I')
      at++;  // type arguments follow
    else if (*at == 'M' || *at == 'X')
      method = true, at = skip_disambiguator(at + 1);  // an impl
    else if (*at == 'Y')
      method = true, at++;  // a method of a trait, such as a closure's `call_once`
    else
      return "";
  }
  at++;
  std::string path, part;
  if (!read_identifier(at, path) || (path != "ft" && path != "all")) return "";
  while (read_identifier(at, part))
    if (!part.empty()) path += "::" + part;
  if (!method) return path;
  std::string last;
  while (*at) {  // the name of the method is the last one that is not a crate's
    const bool is_crate = *at == 'C';
    if (*at == 'B')
      at = std::strchr(at, '_') ? std::strchr(at, '_') : at;  // a reference to an earlier part
    else if (is_crate)
      at++;
    if (!read_identifier(at, part))
      at++;
    else if (!is_crate && !part.empty())
      last = part;
  }
  return last.empty() ? path : path + "::" + last;
}

// The functions in the symbol table of the running program.
class Program {
  struct Function {
    uintptr_t from, to;
    const char* name;
  };
  std::vector<Function> functions;
  uintptr_t base = 0;

 public:
  Program() {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* base) {
          *static_cast<uintptr_t*>(base) = info->dlpi_addr;
          return 1;  // the first is the program itself
        },
        &base);
    int file = open("/proc/self/exe", O_RDONLY);
    struct stat status;
    if (file < 0 || fstat(file, &status) != 0) return;
    auto* image = static_cast<char*>(mmap(nullptr, status.st_size, PROT_READ, MAP_PRIVATE, file, 0));
    close(file);
    if (image == MAP_FAILED) return;
    auto* header = reinterpret_cast<Elf64_Ehdr*>(image);
    auto* sections = reinterpret_cast<Elf64_Shdr*>(image + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
      if (sections[i].sh_type != SHT_SYMTAB) continue;
      const char* names = image + sections[sections[i].sh_link].sh_offset;
      auto* symbols = reinterpret_cast<Elf64_Sym*>(image + sections[i].sh_offset);
      for (size_t k = 0; k < sections[i].sh_size / sizeof(Elf64_Sym); k++)
        if (ELF64_ST_TYPE(symbols[k].st_info) == STT_FUNC && symbols[k].st_size)
          functions.push_back(
              {symbols[k].st_value, symbols[k].st_value + symbols[k].st_size, names + symbols[k].st_name});
    }
    std::sort(functions.begin(), functions.end(), [](auto& a, auto& b) { return a.from < b.from; });
  }
  // Returns the name of the function around an address, or nullptr if the address is not in the program.
  const char* at(uintptr_t address) const {
    const uintptr_t offset = address - base;
    auto after =
        std::upper_bound(functions.begin(), functions.end(), offset, [](uintptr_t o, auto& f) { return o < f.from; });
    return after == functions.begin() || offset >= std::prev(after)->to ? nullptr : std::prev(after)->name;
  }
};
}  // namespace

std::vector<std::string> own_frames(size_t most) {
  static const auto* program = new Program();
  void* addresses[128];
  const int n = backtrace(addresses, 128);
  std::vector<std::string> frames;
  for (int i = 0; i < n && frames.size() < most; i++) {
    const char* name = program->at(reinterpret_cast<uintptr_t>(addresses[i]) - 1);  // the call, not what returns
    if (!name) continue;
    // Functions of the bindings and of Rust's library say nothing about who waits.
    const std::string path = own_path(name);
    if (!path.empty() && (frames.empty() || frames.back() != path)) frames.push_back(path);
  }
  return frames;
}

bool with_stacks() {
  static const bool asked = fake_number("FAKE_CUDA_STACKS", 0) != 0;
  return asked;
}
std::string with_own_frames(std::string text) {
  for (const std::string& frame : own_frames(8)) text += " < " + frame;
  return text;
}

void count_launch(const std::string& operation) {
  if (replaying()) return;
  auto& c = Counters::get();
  std::lock_guard<std::mutex> hold(c.lock);
  c.total.launches++;
  c.operations[operation]++;
  if (!c.mark.empty() && operation.compare(0, operation.find('.'), c.mark) == 0) c.set_mark();
}
void count_wait(const std::string& reason, int64_t times) {
  if (times > 0) refuse_in_capture(reason);
  auto& c = Counters::get();
  const std::string stack = with_stacks() ? with_own_frames(reason) : "";
  std::lock_guard<std::mutex> hold(c.lock);
  c.total.waits += times;
  c.waits[reason] += times;
  if (!stack.empty()) c.stacks[stack] += times;
}
void count_upload(size_t bytes) {
  auto& c = Counters::get();
  std::lock_guard<std::mutex> hold(c.lock);
  c.total.uploads++;
  c.total.upload_bytes += bytes;
}
void count_download(size_t bytes) {
  auto& c = Counters::get();
  std::lock_guard<std::mutex> hold(c.lock);
  c.total.downloads++;
  c.total.download_bytes += bytes;
}
void count_allocation() {
  auto& c = Counters::get();
  std::lock_guard<std::mutex> hold(c.lock);
  c.total.allocations++;
}
}  // namespace fake

extern "C" {
// Copies the counts since the start or the last reset.
void fake_cuda_counters(fake_cuda_counts* out) {
  auto& c = fake::Counters::get();
  std::lock_guard<std::mutex> hold(c.lock);
  *out = c.total;
}
void fake_cuda_reset() {
  auto& c = fake::Counters::get();
  std::lock_guard<std::mutex> hold(c.lock);
  c.total = c.at_mark = {};
  c.marks.clear();
  c.operations.clear();
  c.waits.clear();
  c.stacks.clear();
}
// Begins and counts a kernel that does not come through libtorch's dispatcher, on the current stream of a device.
void fake_cuda_launch(const char* name, int device) {
  fake::begin_operation(device);
  fake::count_launch(name);
}
// Returns where the bytes of a device address are, for such a kernel.
void* fake_cuda_host(void* address) { return fake::host(address); }
}
