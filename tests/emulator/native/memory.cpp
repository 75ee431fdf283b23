/* Memory as a kernel sees it: what it was given, shared memory, stacks; which of them an address is in. */
#include "order.h"

#include <algorithm>
#include <cstring>
#include <link.h>
#include <sys/mman.h>

namespace emu {

enum { PAGE = 4096, STACK_BYTES = 256 * 1024, STACK_GUARD = 1 << 20 };

static std::vector<Region> regions; /* in the order of their addresses */
static unsigned char *shared_arena, *stacks;
static size_t shared_stride, stacks_bytes, shared_arena_bytes;
static u32 shared_offset;

typedef std::vector<std::pair<uintptr_t, uintptr_t>> Ranges;

static Ranges module, constants; /* of the kernel: all of it, and what is only read */
static bool contains(const Ranges &ranges, const void *address, size_t bytes) {
  uintptr_t p = (uintptr_t)address;
  return std::any_of(ranges.begin(), ranges.end(),
                     [&](const auto &range) { return p >= range.first && p + bytes <= range.second; });
}

/* --- accesses ---------------------------------------------------------------------------------------------------- */

static void no_such_address(const void *address, size_t bytes, Access access, uintptr_t pc) {
  const Region *nearest = nullptr;
  long best = 1 << 20;
  const unsigned char *p = (const unsigned char *)address;
  for (const Region &region : regions) {
    long distance = p < region.begin ? region.begin - p : p - region.end;
    if (distance < best) {
      best = distance;
      nearest = &region;
    }
  }
  const char *does = is_read(access) ? "reads" : "writes";
  if (nearest)
    fatal(pc, "%s %zu bytes at %s %+ld, out of bounds: it has %ld bytes", does, bytes, nearest->name.c_str(),
          (long)(p - nearest->begin), (long)(nearest->end - nearest->begin));
  if (contains(module, address, 1))
    fatal(pc, "%s %zu bytes of a variable that is neither shared nor constant", does, bytes);
  fatal(pc, "%s %zu bytes at %p, which is no memory of this kernel", does, bytes, address);
}

static Region *find_region(unsigned char *p) {
  auto behind = std::upper_bound(regions.begin(), regions.end(), p,
                                 [](const unsigned char *address, const Region &r) { return address < r.begin; });
  return behind != regions.begin() && p < behind[-1].end ? &behind[-1] : nullptr;
}

void touch(const void *address, size_t bytes, Access access, uintptr_t pc) {
  unsigned char *p = (unsigned char *)address;
  if (!machine.now)
    return;
  if ((size_t)(p - stacks) < stacks_bytes) {
    if (machine.watches_registers)
      touch_registers(address, bytes, access == WRITE, pc);
    return;
  }
  Block &block = *machine.now->warp->block;
  if ((size_t)(p - shared_arena) < shared_arena_bytes) {
    long offset = p - block.shared;
    if (offset < 0 || (size_t)offset + bytes > machine.shared_bytes)
      fatal(pc, "%s %zu bytes at shared memory %+ld, out of bounds: the block has %zu bytes",
            access == WRITE ? "writes" : "reads", bytes, offset, machine.shared_bytes);
    touch_shared({&block, (size_t)offset, false}, bytes, access, pc);
    return;
  }
  if (is_static(p)) {
    check_static((size_t)(p - machine.static_begin), bytes, is_read(access) ? "reads" : "writes", pc);
    touch_shared({&block, (size_t)(p - machine.static_begin), true}, bytes, access, pc);
    return;
  }
  Region *region = find_region(p);
  if (region && bytes <= (size_t)(region->end - p)) {
    touch_global(*region, (size_t)(p - region->begin), bytes, access, pc);
    return;
  }
  if (is_read(access) && contains(constants, address, bytes))
    return;
  no_such_address(address, bytes, access, pc);
}

std::string place_of(const void *address) {
  unsigned char *p = (unsigned char *)address;
  if (Region *region = find_region(p))
    return region->name + " + " + std::to_string(p - region->begin);
  if (is_static(p))
    return SharedPlace{machine.blocks[0], (size_t)(p - machine.static_begin), true}.text();
  return is_shared(address) ? "shared memory" : "memory";
}

/* What a bulk copy of the running thread wrote there is done and known to it. */
void mark_global_done(unsigned char *address, size_t bytes, uintptr_t pc) {
  Region *region = find_region(address);
  if (region)
    global_done(*region, (size_t)(address - region->begin), bytes, pc);
}

/* --- addresses of shared memory ---------------------------------------------------------------------------------- */

/* As on a GPU, whose descriptors of matrices have 18 bits of an address, all of it lies below 1 << 18: dynamic shared
 * memory, then static. */
enum { WINDOW = PAGE };

static u32 static_window() { return (u32)(WINDOW + (shared_offset + machine.shared_bytes + 2 * PAGE) / PAGE * PAGE); }

bool is_shared(const void *address) {
  const unsigned char *p = (const unsigned char *)address;
  return (size_t)(p - shared_arena) < shared_arena_bytes || is_static(p);
}

/* Congruent to the pointer modulo a page. Where the memory begins is as badly aligned as its declaration allows. */
u32 shared_window(const void *pointer, uintptr_t pc) {
  unsigned char *p = (unsigned char *)pointer;
  Block &block = *machine.now->warp->block;
  if (is_static(p))
    return (u32)(static_window() + ((uintptr_t)machine.static_begin % PAGE) + (p - machine.static_begin));
  if ((size_t)(p - shared_arena) >= shared_arena_bytes)
    fatal(pc, "the address %p is not in shared memory", pointer);
  return (u32)(WINDOW + shared_offset + (p - block.shared));
}

SharedPlace shared_place(Block &block, u32 address, u32 bytes, const char *what, uintptr_t pc) {
  if (address >= static_window()) {
    size_t offset = address - static_window() - (uintptr_t)machine.static_begin % PAGE;
    if (offset + bytes <= static_bytes()) {
      check_static(offset, bytes, what, pc);
      return {&block, offset, true};
    }
  } else {
    long offset = (long)address - WINDOW - (long)shared_offset;
    if (offset >= 0 && (size_t)offset + bytes <= machine.shared_bytes)
      return {&block, (size_t)offset, false};
    fatal(pc, "%s: shared memory %+ld, out of bounds: the block has %zu bytes", what, offset, machine.shared_bytes);
  }
  fatal(pc, "%s: %#x is no address of shared memory", what, address);
}

unsigned char *shared_data(const SharedPlace &place) {
  if (!place.is_static)
    return place.block->shared + place.offset;
  return (machine.loaded == place.block ? machine.static_begin : place.block->static_shared.data()) + place.offset;
}

unsigned char *shared_pointer(u32 address, u32 bytes, const char *what, uintptr_t pc) {
  return shared_data(shared_place(*machine.now->warp->block, address, bytes, what, pc));
}

/* --- setting up -------------------------------------------------------------------------------------------------- */

void *stack_of(int slot, unsigned thread, size_t *bytes) {
  size_t threads = (size_t)machine.block_dim.x * machine.block_dim.y * machine.block_dim.z;
  *bytes = STACK_BYTES - PAGE;
  return stacks + ((size_t)slot * threads + thread) * STACK_BYTES + PAGE;
}

/* The segments of the module that `wanted` is in. */
static int add_module(dl_phdr_info *info, size_t, void *wanted) {
  auto range = [&](const ElfW(Phdr) & segment) {
    uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
    return std::make_pair(begin, begin + segment.p_memsz);
  };
  Ranges all, read_only;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) &segment = info->dlpi_phdr[i];
    if (segment.p_type == PT_LOAD)
      all.push_back(range(segment));
    if ((segment.p_type == PT_LOAD && !(segment.p_flags & PF_W)) || segment.p_type == PT_GNU_RELRO)
      read_only.push_back(range(segment));
  }
  if (!contains(all, wanted, 1))
    return 0;
  module = all;
  constants = read_only;
  return 1;
}

/* What a launch has had is kept for those that need no more: guards make each stack an area of its own in the kernel's
 * eyes, and to set up thousands takes longer than many a launch. */
static void *new_memory(size_t bytes) {
  return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static void reserve_shared(size_t bytes) {
  if (bytes <= shared_arena_bytes)
    return;
  if (shared_arena)
    munmap(shared_arena, shared_arena_bytes);
  shared_arena_bytes = bytes;
  shared_arena = (unsigned char *)new_memory(bytes);
}

static void reserve_stacks(size_t bytes) {
  if (bytes <= stacks_bytes)
    return;
  if (stacks)
    munmap(stacks - STACK_GUARD, stacks_bytes + STACK_GUARD);
  stacks_bytes = bytes;
  stacks = (unsigned char *)new_memory(bytes + STACK_GUARD);
  mprotect(stacks, STACK_GUARD, PROT_NONE); /* what is too large for the first stack ends here */
  stacks += STACK_GUARD;
  for (size_t begin = 0; begin < bytes; begin += STACK_BYTES)
    mprotect(stacks + begin, PAGE, PROT_NONE);
}

void memory_launch() {
  dl_iterate_phdr(add_module, (void *)machine.kernel);
  constants.push_back({(uintptr_t)&emu_ids_now, (uintptr_t)(&emu_ids_now + 1)});
  for (Region &region : regions) {
    for (Mark &w : region.write)
      if (w.kind == WRITTEN)
        w.kind = HOST;
    std::fill(region.since.begin(), region.since.end(), (u32)NO_HISTORY);
  }
  u32 align = machine.shared_alignment;
  shared_offset = align < 1024 ? align : 0;
  size_t resident = (size_t)machine.settings.resident;
  shared_stride = (machine.shared_bytes + shared_offset + 3 * PAGE) / PAGE * PAGE;
  reserve_shared(shared_stride * resident);
  reserve_stacks(resident * machine.block_dim.x * machine.block_dim.y * machine.block_dim.z * STACK_BYTES);
  registers_launch(stacks, stacks_bytes);
  shadow_launch(resident);
}

void block_memory_begin(Block &block) {
  shadow_begin(block);
  block.shared = shared_arena + (size_t)block.slot * shared_stride + shared_offset;
  memset(block.shared, 0xff, machine.shared_bytes); /* NaN of every type */
  block.static_shared.assign(static_bytes(), 0xff);
}

void block_memory_end(Block &) {}

/* state: for each two bytes, 0 never written, 1 written by the host, 2 between the elements of a tensor. */
extern "C" void emu_add_memory(const char *name, void *memory, size_t bytes, int writable, const unsigned char *state) {
  Region region = {name, (unsigned char *)memory, (unsigned char *)memory + bytes, writable != 0, WIDE, {}, {}};
  size_t cells = total_cells(bytes, WIDE);
  region.write.resize(cells);
  region.since.resize(writable ? cells : 0, NO_HISTORY);
  for (size_t i = 0; i < cells; i++)
    region.write[i].kind = (Kind)state[i];
  auto behind = std::upper_bound(regions.begin(), regions.end(), region.begin,
                                 [](const unsigned char *address, const Region &r) { return address < r.begin; });
  regions.insert(behind, std::move(region));
}

extern "C" void emu_remove_memory() { regions.clear(); }

/* What has been written is put down, so that a launch can be run again. All else begins anew with each launch. */
static std::vector<std::vector<Kind>> saved; /* of each region */

extern "C" void emu_save() {
  saved.clear();
  for (const Region &region : regions) {
    saved.emplace_back();
    for (size_t i = 0; region.writable && i < region.write.size(); i++)
      saved.back().push_back(region.write[i].kind);
  }
}

extern "C" void emu_restore() {
  for (size_t r = 0; r < regions.size(); r++) {
    Region &region = regions[r];
    u32 divided = region.write.size() > saved[r].size(); /* since */
    for (size_t i = 0; region.writable && i < region.write.size(); i++)
      region.write[i].kind = saved[r][i >> divided];
  }
}

/* How many bytes of elements of a tensor are still unwritten. */
extern "C" size_t emu_unwritten(const char *name) {
  size_t count = 0;
  for (const Region &region : regions)
    if (region.name == name)
      for (const Mark &w : region.write)
        count += w.kind == UNWRITTEN ? 1u << region.width : 0;
  return count;
}

} // namespace emu
