/*
 * The tiles of AMX (Intel's manual, volume 1, chapter 18): 16 rows of 16 elements of 32 bits, one KB.
 *
 * In a product c[row][column] += sum over k of a[row][k] * b[k][column], c holds floats; an element of a or b is a
 * pair of bf16 that are neighbours in k, the first in the low half. Which two terms make a pair does not matter as long
 * as both sides agree: here they are always terms i and i + 16 of a group of 32, so that whole vectors pair up.
 *
 * One product takes 16 cycles for 8192 multiply-adds, sixteen times what FMAs do.
//% if parts > 1
 *
 * A number is the exact sum of ${parts} bf16, each 8 bits of its significand: cut off, not rounded, so that the largest float
 * does not become infinite. Of the ${parts * parts} products of parts, those below 2^-24 are left out. An infinity becomes an infinity and
 * a NaN.
//% end
 */
typedef struct tile {
  float row[16][LANES];
} __attribute__((aligned(64))) tile;

struct tile_config {
  unsigned char palette, start_row, reserved[14];
  unsigned short row_bytes[16];
  unsigned char rows[16];
};

static inline void begin_tiles(void)
{
  struct tile_config config = {
      .palette = 1,
      .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
      .rows = {16, 16, 16, 16, 16, 16, 16, 16},
  };
  asm volatile("ldtilecfg %0" : : "m"(config));
}

/* Tiles that are in use make every context switch slower. */
static inline void end_tiles(void) { asm volatile("tilerelease"); }

static inline __attribute__((always_inline)) void prefetch_tile(const tile *at)
{
//% for row in 0 .. 16
  __builtin_prefetch(at->row[${row}]);
//% end
}

/* Numbers below 2^-126 are zero to the tile unit; let them be so in what is computed beside it, since an FMA that makes
 * one takes a hundred cycles. Returns what the caller's mode was. */
static inline unsigned begin_flushing(void)
{
  unsigned before, with;
  asm volatile("vstmxcsr %0" : "=m"(before));
  with = before | 0x8040;
  asm volatile("vldmxcsr %0" : : "m"(with));
  return before;
}
static inline void end_flushing(unsigned before) { asm volatile("vldmxcsr %0" : : "m"(before)); }

/* Two vectors of terms as a row of pairs in each of the tiles of their parts, which are `apart` tiles apart. */
static inline __attribute__((always_inline)) void store_pairs(tile *to, long apart, long row, vec low, vec high)
{
//% for part in 0 .. parts
//%   if part > 0
  low -= (vec)((uvec)low & 0xffff0000u);
  high -= (vec)((uvec)high & 0xffff0000u);
//%   end
  store(to[${part} * apart].row[row], (vec)(((uvec)high & 0xffff0000u) | (uvec)low >> 16));
//% end
  (void)apart;
}

/* The same for what was computed. */
static inline __attribute__((always_inline)) void store_computed_pairs(tile *to, long apart, long row, vec low, vec high)
{
//% if parts == 1
  low = (vec)((uvec)low + 0x8000u); /* to nearest */
  high = (vec)((uvec)high + 0x8000u);
//% end
  store_pairs(to, apart, row, low, high);
}
