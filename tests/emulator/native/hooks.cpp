/*
 * What GCC's -fsanitize=thread and -fsanitize=undefined call. Kernels are compiled with them and linked to these
 * functions instead of the sanitizers' libraries, so every plain access of a kernel is seen.
 */
#include "machine.h"

using namespace emu;

/* A volatile read may be a look at what another thread is to change. */
static void poll(const void *address, size_t bytes, uintptr_t pc) {
  touch(address, bytes, READ, pc);
  if (machine.now) {
    look_at(address, pc);
    yield(pc);
  }
}

#define ACCESS(SIZE)                                                                                                   \
  extern "C" void __tsan_read##SIZE(void *address) { touch(address, SIZE, READ, EMU_PC); }                             \
  extern "C" void __tsan_write##SIZE(void *address) { touch(address, SIZE, WRITE, EMU_PC); }                           \
  extern "C" void __tsan_unaligned_read##SIZE(void *address) { touch(address, SIZE, READ, EMU_PC); }                   \
  extern "C" void __tsan_unaligned_write##SIZE(void *address) { touch(address, SIZE, WRITE, EMU_PC); }                 \
  extern "C" void __tsan_volatile_read##SIZE(void *address) { poll(address, SIZE, EMU_PC); }                           \
  extern "C" void __tsan_volatile_write##SIZE(void *address) { touch(address, SIZE, WRITE, EMU_PC); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

extern "C" void __tsan_read_range(void *address, unsigned long bytes) { touch(address, bytes, READ, EMU_PC); }
extern "C" void __tsan_write_range(void *address, unsigned long bytes) { touch(address, bytes, WRITE, EMU_PC); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void **, void *) {}
extern "C" void __tsan_vptr_read(void **) {}

/* --- undefined behaviour ----------------------------------------------------------------------------------------- */

struct SourceLocation {
  const char *file;
  unsigned line, column;
};
struct TypeDescriptor {
  unsigned short kind, info;
  char name[1];
};
struct TypeMismatch {
  SourceLocation location;
  const TypeDescriptor *type;
  unsigned char log_alignment, kind;
};
struct OutOfBounds {
  SourceLocation location;
  const TypeDescriptor *array_type, *index_type;
};

extern "C" void __ubsan_handle_type_mismatch_v1(TypeMismatch *data, uintptr_t pointer) {
  uintptr_t alignment = (uintptr_t)1 << data->log_alignment;
  if (pointer % alignment)
    fatal(EMU_PC, "access to a %s at an address that is %lu off a multiple of %lu", data->type->name,
          (unsigned long)(pointer % alignment), (unsigned long)alignment);
  fatal(EMU_PC, "access to a %s through a null pointer", data->type->name);
}

extern "C" void __ubsan_handle_out_of_bounds(OutOfBounds *data, uintptr_t index) {
  fatal(EMU_PC, "index %ld is out of bounds of %s", (long)index, data->array_type->name);
}

extern "C" void __ubsan_handle_shift_out_of_bounds(SourceLocation *, uintptr_t, uintptr_t by) {
  finding(EMU_PC, "shift by %ld, or of a negative number, is undefined", (long)by);
}

#define OVERFLOW(NAME, TEXT)                                                                                           \
  extern "C" void __ubsan_handle_##NAME(SourceLocation *, uintptr_t, uintptr_t) {                                      \
    finding(EMU_PC, "%s of signed integers is undefined", TEXT);                                                       \
  }
OVERFLOW(add_overflow, "overflow in an addition")
OVERFLOW(sub_overflow, "overflow in a subtraction")
OVERFLOW(mul_overflow, "overflow in a multiplication")
/* Behind this call the processor would stop. */
extern "C" void __ubsan_handle_divrem_overflow(SourceLocation *, uintptr_t, uintptr_t) {
  fatal(EMU_PC, "%s", UNDEFINED_DIVISION);
}
extern "C" void __ubsan_handle_float_cast_overflow(void *, uintptr_t) {
  finding(EMU_PC, "a floating-point number that an integer cannot hold is converted to one");
}
extern "C" void __ubsan_handle_negate_overflow(SourceLocation *, uintptr_t) {
  finding(EMU_PC, "overflow in a negation is undefined");
}
extern "C" void __ubsan_handle_pointer_overflow(SourceLocation *, uintptr_t, uintptr_t) {
  finding(EMU_PC, "arithmetic with a null pointer, or overflow of a pointer, is undefined");
}
extern "C" void __ubsan_handle_builtin_unreachable(SourceLocation *) {
  fatal(EMU_PC, "code that is declared unreachable is reached");
}
extern "C" void __ubsan_handle_missing_return(SourceLocation *) { fatal(EMU_PC, "a function ends without a return"); }
