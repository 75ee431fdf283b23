/*
 * ${name}_${dim}_${vectors}v: c[row][lane] = sum over k of a[row][k] * b[k][lane]; update: ${update}.
 *
 * A row of b and c is ${vectors} vectors; an element of a is broadcast against them, so a is read where it lies.
 * ${tile_rows} rows at a time keep ${tile_rows * vectors} sums in registers. Sums start from zero on every call and
 * meet what c held only at the end: that keeps the rounding error of long sums small.
//% if chunk > 0
 * Every ${chunk} steps of k are summed by themselves, which matters where a few columns are much larger than the rest.
//% end
//% if dot
 * An element is a pair of bf16, and one step of k is two terms (vdpbf16ps).
//% end
 */
//% if chunk > 0 && update != "set"
//%   error "chunks are added to c, which only update = set leaves to them"
//% end
//% let last_rows = rows % tile_rows
//% for part in 0 .. 2
//%   let part_rows = tile_rows * (1 - part) + last_rows * part
//%   if part_rows > 0
static inline __attribute__((always_inline)) void
${name}_${dim}_${vectors}v_${part_rows}_rows(const float *a, const float *b, float *c, long count
//%     if update == "rescale"
  , const vec *rescale
//%     end
)
{
//%     if chunk > 0
  for (long done = 0; done < count; done += ${chunk}) {
    long steps = count - done < ${chunk} ? count - done : ${chunk};
//%     else
  {
    long steps = count;
//%     end
//%     for r in 0 .. part_rows
//%       for v in 0 .. vectors
    vec sum_${r}_${v} = {0};
//%       end
//%     end
    for (long k = 0; k < steps; k++, a += ${a_k}, b += ${b_k}) {
//%     for v in 0 .. vectors
      vec b_${v} = load(b + ${v} * LANES);
//%     end
//%     for r in 0 .. part_rows
      vec a_${r} = splat(a[${r * a_row}]);
//%       for v in 0 .. vectors
//%         if dot
      asm("vdpbf16ps %2, %1, %0" : "+v"(sum_${r}_${v}) : "v"(a_${r}), "v"(b_${v}));
//%         else
      sum_${r}_${v} += a_${r} * b_${v};
//%         end
//%       end
//%     end
    }
//%     if chunk > 0
    if (done > 0) {
//%       for r in 0 .. part_rows
//%         for v in 0 .. vectors
      sum_${r}_${v} += load(c + ${r * c_row + v * lanes});
//%         end
//%       end
    }
//%     end
//%     for r in 0 .. part_rows
//%       for v in 0 .. vectors
//%         let c_at = r * c_row + v * lanes
//%         if update == "set"
    store(c + ${c_at}, sum_${r}_${v});
//%         elif update == "add"
    store(c + ${c_at}, load(c + ${c_at}) + sum_${r}_${v});
//%         else
    store(c + ${c_at}, load(c + ${c_at}) * rescale[${v}] + sum_${r}_${v});
//%         end
//%       end
//%     end
  }
}
//%   end
//% end

static __attribute__((noinline)) void ${name}_${dim}_${vectors}v(const float *a, const float *b, float *c,
                                                                      long rows, long count
//% if update == "rescale"
  , const vec *rescale
//% end
)
{
  long row = 0;
  for (; row + ${tile_rows} <= rows; row += ${tile_rows})
    ${name}_${dim}_${vectors}v_${tile_rows}_rows(a + row * ${a_row}, b, c + row * ${c_row}, count
//% if update == "rescale"
      , rescale
//% end
    );
//% if last_rows > 0
  if (row < rows)
    ${name}_${dim}_${vectors}v_${last_rows}_rows(a + row * ${a_row}, b, c + row * ${c_row}, count
//%   if update == "rescale"
      , rescale
//%   end
    );
//% end
}
