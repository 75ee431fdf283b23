/*
 * ${name}: c[${m_tiles} x 2 tiles] = sum over groups of 32 terms of a * b.
 *
 * Tile (m, part) of a group of a is a[m * ${a_m} + part], (n, part) of b is b[2 * part + n]; the next groups are ${a_k} and ${2 * parts}
 * tiles on. The sums stay in tiles 0 to 3; a's are loaded to 4 and 5, b's to 6 and 7, each next pair of parts with one
 * side of the last, so that fewer tiles are loaded (8 cycles each) than products made (16 cycles).
//% if units > 0
 *
 * Between the products the vector units do something else, ${units} times ${beside}. That fills the reorder buffer,
 * so that loads do not run ahead of the products as far as they would: what the next group reads is prefetched.
//% end
 */
static __attribute__((noinline)) void ${name}(const tile *a, const tile *b, tile *c
//% if count == 0
  , long count
//% end
//% if units > 0
  , struct ${beside}_work *work
//% end
)
{
  const long row_bytes = 64;
//% for n in 0 .. 2 * m_tiles
  asm volatile("tilezero %%tmm${n}" : :);
//% end
//%# Where the number of groups is not a constant, the first is by itself and the work beside is with it.
//% for rest in 0 .. 1 + (count == 0)
//%   if rest
  for (long group = 1; group < count; group++) {
    a += ${a_k}, b += ${2 * parts};
//%   else
  {
//%   end
//%   for group in 0 .. max(count, 1)
//%     for p in 0 .. products
//%       let step = group * products + p
//%       let steps = max(count, 1) * products
//%       include "cpu/amx_products.h"
//%       for m in 0 .. m_tiles * new_a
    asm volatile("tileloadd ${1024 * (group * a_k + m * a_m + part_a)}(%0,%1,1), %%tmm${4 + m}" : : "r"(a), "r"(row_bytes) : "memory");
//%       end
//%       for n in 0 .. 2 * new_b
    asm volatile("tileloadd ${1024 * (group * 2 * parts + 2 * part_b + n)}(%0,%1,1), %%tmm${6 + n}" : : "r"(b), "r"(row_bytes) : "memory");
//%       end
//%       for m in 0 .. m_tiles
//%         for n in 0 .. 2
    asm volatile("tdpbf16ps %%tmm${6 + n}, %%tmm${4 + m}, %%tmm${2 * m + n}" : :);
//%         end
//%       end
//%       for t in m_tiles * parts * p / products .. m_tiles * parts * (p + 1) / products * (units > 0)
    prefetch_tile(a + ${(group + 1) * a_k + t / parts * a_m + t % parts});
//%       end
//%       for t in 2 * parts * p / products .. 2 * parts * (p + 1) / products * (count > 0 && units > 0)
    prefetch_tile(b + ${(group + 1) * 2 * parts + t});
//%       end
//%       for unit in units * (1 - rest) * step / steps .. units * (1 - rest) * (step + 1) / steps
    ${beside}(work, ${unit});
//%       end
//%     end
//%   end
  }
//% end
//% for n in 0 .. 2 * m_tiles
  asm volatile("tilestored %%tmm${n}, ${1024 * n}(%0,%1,1)" : : "r"(c), "r"(row_bytes) : "memory");
//% end
}
