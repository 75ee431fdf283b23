/* Findings: text for people, each place of the program as a token that the Python side turns into a line of source. */
#include "machine.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <set>

namespace emu {

static std::string found;
static std::set<std::string> known;
static int count;
enum { MOST_FINDINGS = 20 };

std::string at(uintptr_t pc) {
  Dl_info info;
  if (!pc || !dladdr((void *)pc, &info))
    return "an unknown place";
  char text[600];
  snprintf(text, sizeof text, "@{%s %#lx}", info.dli_fname, (unsigned long)(pc - 1 - (uintptr_t)info.dli_fbase));
  return text;
}

std::string who(const Thread &thread) {
  char text[160];
  const Dim &b = thread.ids.block;
  snprintf(text, sizeof text, "block (%u, %u, %u) thread %u (warp %u lane %u)", b.x, b.y, b.z, thread.index,
           thread.warp->index, thread.lane);
  return text;
}

static void add(uintptr_t pc, const char *format, va_list arguments) {
  va_list again;
  va_copy(again, arguments);
  std::string text((size_t)vsnprintf(nullptr, 0, format, again) + 1, '\0');
  va_end(again);
  vsnprintf(&text[0], text.size(), format, arguments);
  text.pop_back();
  std::string place = pc ? at(pc) + ": " : "";
  /* The same thing at the same place is said once. */
  std::string key = place + std::string(format);
  if (!known.insert(key).second || ++count > MOST_FINDINGS)
    return;
  found += place + text;
  if (machine.now)
    found += "\n    by " + who(*machine.now);
  found += "\n";
}

void finding(uintptr_t pc, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  add(pc, format, arguments);
  va_end(arguments);
}

void fatal(uintptr_t pc, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  add(pc, format, arguments);
  va_end(arguments);
  machine.failed = true;
  void *dead;
  emu_switch(&dead, machine.scheduler_sp);
  __builtin_unreachable();
}

/* What was found since the last reset; "" is well. */
extern "C" const char *emu_findings() { return found.c_str(); }
extern "C" void emu_reset_findings() {
  found.clear();
  known.clear();
  count = 0;
}

} // namespace emu
