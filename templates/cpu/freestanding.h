/*
 * The two functions that a compiler may call by itself, for loops that it takes for them: the kernel is linked
 * with no library.
 */
__attribute__((visibility("hidden"))) void *memset(void *to, int byte, unsigned long count)
{
//% if isa == "neon"
  for (volatile char *p = to; count > 0; count--)
    *p++ = (char)byte;
//% else
  void *p = to;
  asm volatile("rep stosb" : "+D"(p), "+c"(count) : "a"(byte) : "memory");
//% end
  return to;
}

__attribute__((visibility("hidden"))) void *memcpy(void *restrict to, const void *restrict from, unsigned long count)
{
//% if isa == "neon"
  const char *in = from;
  for (volatile char *p = to; count > 0; count--)
    *p++ = *in++;
//% else
  void *p = to;
  asm volatile("rep movsb" : "+D"(p), "+S"(from), "+c"(count) : : "memory");
//% end
  return to;
}
