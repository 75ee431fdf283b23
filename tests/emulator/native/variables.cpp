/*
 * Static shared variables. All lie in one section of the kernel's module, with room between them; what is in it belongs
 * to the block that runs, and is exchanged when another does (scheduler.cpp). The table of them is in the module too:
 * tests/emulator/variables.py adds both to the assembly.
 */
#include "machine.h"

#include <cstdlib>
#include <cxxabi.h>

namespace emu {

/* As it stands in the table. */
struct Variable {
  const unsigned char *begin;
  u64 bytes;
  const char *name; /* mangled */
};

static const Variable *variables, *variables_end;

void setup_static(void *const range[4]) {
  machine.static_begin = (unsigned char *)range[0];
  machine.static_end = (unsigned char *)range[1];
  variables = (const Variable *)range[2];
  variables_end = (const Variable *)range[3];
}

size_t static_bytes() { return (size_t)(machine.static_end - machine.static_begin); }

bool is_static(const void *address) {
  return address >= (void *)machine.static_begin && address < (void *)machine.static_end;
}

/* That which p is in, or the next one. */
static const Variable *nearest(const unsigned char *p) {
  const Variable *best = nullptr;
  long least = 0;
  for (const Variable *v = variables; v < variables_end; v++) {
    long behind = p - (v->begin + v->bytes) + 1, distance = p < v->begin ? v->begin - p : behind > 0 ? behind : 0;
    if (!best || distance < least) {
      best = v;
      least = distance;
    }
  }
  return best;
}

std::string static_name(size_t offset) {
  const unsigned char *p = machine.static_begin + offset;
  const Variable *v = nearest(p);
  if (!v)
    return "+ " + std::to_string(offset);
  int status;
  char *demangled = abi::__cxa_demangle(v->name, nullptr, nullptr, &status);
  std::string name = demangled ? demangled : v->name;
  free(demangled);
  size_t colons = name.rfind("::"); /* behind the function's */
  if (colons != std::string::npos)
    name.erase(0, colons + 2);
  return name + (p < v->begin ? " - " + std::to_string(v->begin - p) : " + " + std::to_string(p - v->begin));
}

void check_static(size_t offset, size_t bytes, const char *does, uintptr_t pc) {
  const unsigned char *p = machine.static_begin + offset;
  const Variable *v = nearest(p);
  if (!v || p < v->begin || p + bytes > v->begin + v->bytes)
    fatal(pc, "%s %zu bytes at static shared memory %s, out of bounds: it has %llu bytes", does, bytes,
          static_name(offset).c_str(), v ? (unsigned long long)v->bytes : 0ull);
}

} // namespace emu
