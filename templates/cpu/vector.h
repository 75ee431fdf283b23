/* Vectors of ${lanes} floats and the few operations on them that C does not have. */
typedef float vec __attribute__((vector_size(${4 * lanes})));
typedef float vec_unaligned __attribute__((vector_size(${4 * lanes}), aligned(4), may_alias));
typedef int ivec __attribute__((vector_size(${4 * lanes})));
typedef unsigned uvec __attribute__((vector_size(${4 * lanes})));
typedef unsigned uvec_unaligned __attribute__((vector_size(${4 * lanes}), aligned(4), may_alias));
typedef unsigned short half_vec __attribute__((vector_size(${2 * lanes})));
typedef unsigned short half_vec_unaligned __attribute__((vector_size(${2 * lanes}), aligned(2), may_alias));

enum { LANES = ${lanes} };

static inline vec load(const float *p) { return *(const vec_unaligned *)p; }
static inline void store(float *p, vec x) { *(vec_unaligned *)p = x; }
static inline vec splat(float x) { return x - (vec){0}; }
static inline vec blend(ivec where, vec yes, vec no) { return (vec)(((ivec)yes & where) | ((ivec)no & ~where)); }
static inline ivec lane_index(void)
{
  return (ivec){
//% for i in 0 .. lanes
      ${i},
//% end
  };
}

/* The larger (smaller) of x and bound; where x is NaN, bound. */
//% if op == "backward" && lanes == 16
//%# nothing takes a maximum there
//% elif isa == "neon"
static inline vec larger(vec x, vec bound)
{
  asm("fmaxnm %0.4s, %1.4s, %2.4s" : "=w"(bound) : "w"(x), "w"(bound));
  return bound;
}
//% else
static inline vec larger(vec x, vec bound)
{
  asm("vmaxps %2, %1, %0" : "=v"(x) : "v"(x), "v"(bound));
  return x;
}
//% end
//% if isa == "neon"
static inline vec smaller(vec x, vec bound)
{
  asm("fminnm %0.4s, %1.4s, %2.4s" : "=w"(bound) : "w"(x), "w"(bound));
  return bound;
}
//% else
static inline vec smaller(vec x, vec bound)
{
  asm("vminps %2, %1, %0" : "=v"(x) : "v"(x), "v"(bound));
  return x;
}
//% end

/*
 * 2^x * UNIT for x <= 0; exactly UNIT at 0, exactly 0 below -150, NaN for NaN. Polynomials: minimax for the relative
 * error of 2^f with p(0) = 1; degree 6 is good to 2e-9 (fp32), degree 4 to 3e-6 (enough for 16-bit results).
 */
//% if op == "forward"
static const float UNIT = 0x1p-20f; /* the sum of a million values, each as large as a float can be, stays finite */
//% else
static const float UNIT = 1.0f;
//% end
static inline vec exp2_units(vec x)
{
//% if lanes == 16 && dtype == "fp32"
  /* f = x - round(x) in [-1/2, 1/2]; near 0, where most weights come from, almost nothing is rounded. */
  vec f, y;
  asm("vreduceps $0, %1, %0" : "=v"(f) : "v"(x));
  vec n = x - f;
  y = splat(1.5353361959569156e-4f * UNIT);
  y = y * f + 1.3398875016719103e-3f * UNIT;
  y = y * f + 9.61843691766262e-3f * UNIT;
  y = y * f + 5.5503323674201965e-2f * UNIT;
  y = y * f + 0.24022647738456726f * UNIT;
  y = y * f + 0.6931471824645996f * UNIT;
  y = y * f + 1.0f * UNIT;
  asm("vscalefps %1, %2, %0" : "=v"(y) : "v"(n), "v"(y));
  return y;
//% elif lanes == 16
  /* f = x - floor(x) is in [0, 1) and vscalefps multiplies by 2^floor(x): one instruction less. */
  vec f, y;
  asm("vreduceps $1, %1, %0" : "=v"(f) : "v"(x));
  y = splat(1.3426687568426132e-2f * UNIT);
  y = y * f + 5.22424690425396e-2f * UNIT;
  y = y * f + 0.2412802129983902f * UNIT;
  y = y * f + 0.6930448412895203f * UNIT;
  y = y * f + 1.0f * UNIT;
  asm("vscalefps %1, %2, %0" : "=v"(y) : "v"(x), "v"(y));
  return y;
//% else
  /* n = round(x) by adding 1.5 * 2^23, f = x - n in [-1/2, 1/2]; multiplying by 2^n keeps NaN a NaN. */
  x = larger(splat(-127.0f), x);
  vec shifted = x + 12582912.0f;
  vec f = x - (shifted - 12582912.0f);
  vec power = (vec)(((ivec)shifted + 127) << 23);
//%   if dtype == "fp32"
  vec y = splat(1.5353361959569156e-4f * UNIT);
  y = y * f + 1.3398875016719103e-3f * UNIT;
  y = y * f + 9.61843691766262e-3f * UNIT;
  y = y * f + 5.5503323674201965e-2f * UNIT;
  y = y * f + 0.24022647738456726f * UNIT;
  y = y * f + 0.6931471824645996f * UNIT;
//%   else
  vec y = splat(9.582852944731712e-3f * UNIT);
  y = y * f + 5.5906426161527634e-2f * UNIT;
  y = y * f + 0.24024099111557007f * UNIT;
  y = y * f + 0.6931241750717163f * UNIT;
//%   end
  y = y * f + 1.0f * UNIT;
  return y * power;
//% end
}

/* Conversions between float and the type of the tensors. */
//% if dtype == "fp32"
typedef float element;
static inline vec load_elements(const element *p) { return load(p); }
static inline void store_elements(element *p, vec x) { store(p, x); }
//% else
typedef unsigned short element;
//%   if dtype == "bf16"
static inline vec load_elements(const element *p)
{
  return (vec)(__builtin_convertvector(*(const half_vec_unaligned *)p, uvec) << 16);
}
static inline void store_elements(element *p, vec x)
{
  /* Round to nearest even; a NaN keeps its sign and becomes quiet. */
  uvec bits = (uvec)x;
  uvec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  ivec is_nan = x != x;
  rounded = (rounded & ~(uvec)is_nan) | (((bits >> 16) | 0x40) & (uvec)is_nan);
  *(half_vec_unaligned *)p = __builtin_convertvector(rounded, half_vec);
}
//%   elif isa == "neon"
static inline vec load_elements(const element *p)
{
  vec x;
  half_vec h = *(const half_vec_unaligned *)p;
  asm("fcvtl %0.4s, %1.4h" : "=w"(x) : "w"(h));
  return x;
}
static inline void store_elements(element *p, vec x)
{
  half_vec h;
  asm("fcvtn %0.4h, %1.4s" : "=w"(h) : "w"(x));
  *(half_vec_unaligned *)p = h;
}
//%   else
static inline vec load_elements(const element *p)
{
  vec x;
  half_vec h = *(const half_vec_unaligned *)p;
  asm("vcvtph2ps %1, %0" : "=v"(x) : "v"(h));
  return x;
}
static inline void store_elements(element *p, vec x)
{
  half_vec h;
  asm("vcvtps2ph $0, %1, %0" : "=v"(h) : "v"(x));
  *(half_vec_unaligned *)p = h;
}
//%   end
//% end

/* count (1 to LANES) elements, stride apart, as floats followed by zeros. */
static inline vec load_strided(const element *p, long long stride, int count)
{
  element buffer[LANES] = {0};
  for (int i = 0; i < count; i++)
    buffer[i] = p[i * stride];
  return load_elements(buffer);
}
static inline void store_strided(element *p, long long stride, int count, vec x)
{
  element buffer[LANES];
  store_elements(buffer, x);
  for (int i = 0; i < count; i++)
    p[i * stride] = buffer[i];
}

/* Transpose a square of vectors: log2(LANES) rounds of interleaving its upper with its lower half. */
static inline void interleave_halves(const vec *x, vec *y)
{
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif
//% for i in 0 .. lanes / 2
  y[${2 * i}] = SHUFFLE(x[${i}], x[${i + lanes / 2}],
//%   for j in 0 .. lanes / 2 - 1
                        ${j}, ${j + lanes},
//%   end
                        ${lanes / 2 - 1}, ${lanes / 2 - 1 + lanes});
  y[${2 * i + 1}] = SHUFFLE(x[${i}], x[${i + lanes / 2}],
//%   for j in lanes / 2 .. lanes - 1
                        ${j}, ${j + lanes},
//%   end
                        ${lanes - 1}, ${2 * lanes - 1});
//% end
#undef SHUFFLE
}

static inline void transpose(vec *x)
{
  vec y[LANES];
  interleave_halves(x, y);
  interleave_halves(y, x);
//% if lanes >= 8
  interleave_halves(x, y);
//%   if lanes == 16
  interleave_halves(y, x);
//%   else
  for (int i = 0; i < LANES; i++)
    x[i] = y[i];
//%   end
//% end
}
